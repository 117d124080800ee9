"""Networks too large for one process: their frozen weights are shared out, and put together block by block when used."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rlcm.errors import ConfigError
from rlcm.pipelines.quantisation import is_quantised
from rlcm.policy.policy import Policy
from rlcm.processes.distributed import World


def shard(policy: Policy, world: World) -> None:
    """Share a policy's frozen weights out between the processes (FSDP2); alone, do nothing.

    The adapter, which is small, stays whole on every process, with its optimiser, its average and its gradients, so that
    everything else works as without sharding. Every process must then call the network equally often: `world.is_lockstep`.

    Raises:
        ConfigError: if the installed torch cannot leave the adapter whole, or the weights are quantised or
            of several precisions.
    """
    if world.size == 1:
        return
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        fully_shard = None  # type: ignore[assignment]
    if fully_shard is None or "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ConfigError(
            f"run.sharding=fsdp2 needs torch 2.7 or newer, and this is {torch.__version__}; upgrade it or use run.sharding=none."
        )
    network = policy.denoiser.module
    if any(is_quantised(parameter) for parameter in network.parameters()):
        raise ConfigError(
            "run.sharding=fsdp2 cannot share out weights of 8 or 4 bits; use run.sharding=none, or model.quantisation=none."
        )
    frozen = {parameter.dtype for parameter in network.parameters() if not parameter.requires_grad}
    if len(frozen) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in frozen))
        raise ConfigError(
            f"run.sharding=fsdp2 needs weights of one precision, and this network has {names}; set model.precision to one of them."
        )
    options: dict[str, Any] = {
        "mesh": dist.device_mesh.init_device_mesh(policy.denoiser.device.type, (world.size,)),
        "ignored_params": set(policy.parameters),
        # The outermost part too: it would else stay whole on some processes and not on others, after one has written the weights.
        "reshard_after_forward": True,
    }
    for block in _blocks(network):
        fully_shard(block, **options)
    fully_shard(network, **options)
    world.is_lockstep = True


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Return the parts that are put together one after the other: what the network's outermost lists hold."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            found += [part for part in child if any(True for _ in part.parameters())]
        elif isinstance(child, nn.Module):
            found += _blocks(child)
    return found
