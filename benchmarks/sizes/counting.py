"""What the tensors of a round's calls take, counted on networks without storage."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.sizes.shapes import SHAPES, SHIPPED, Shape
from rlcm.pipelines import MemoryEstimate, ModelSettings, SamplerSettings, estimate, make_denoiser
from rlcm.pipelines.quantisation import quantise
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.samplers import build_table
from rlcm.training.config import load_config
from rlcm.types import Conditioning

GIB = 2**30


class Living(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made and alive, and keeps their highest sum; `weights` were there before."""

    def __init__(self, *weights: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        there = (tensor for module in weights for tensor in (*module.parameters(), *module.buffers()))
        # Views of the weights share their storage.
        self.known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def estimate_shipped(folder: Path = Path("configs")) -> dict[str, float]:
    """Return the estimate of every shipped configuration on a GPU with bf16, in GiB."""
    found = {}
    for pattern, name in SHIPPED.items():
        for file in sorted(folder.glob(f"{pattern}.yaml")):
            config = load_config(str(file))
            pipeline, denoiser = on_meta(SHAPES[name], config.sampler, config.model, torch.bfloat16)
            Policy(denoiser, config.lora)
            if config.model.gradient_checkpointing:
                denoiser.module.enable_gradient_checkpointing()
            if config.model.vae_slicing:
                pipeline.vae.enable_slicing()
            batch = min(config.rollout.sample_batch_size, config.rollout.batch_size)
            need = estimate(denoiser, batch, config.run.micro_batch_size, training=True)
            found[file.stem] = round(need.total / GIB, 1)
    return found


def on_meta(shape: Shape, sampler: SamplerSettings, model: ModelSettings, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a pipeline without storage, and its denoiser."""
    with torch.device("meta"):
        pipeline = shape.pipeline(None, False)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.to(dtype).eval().requires_grad_(False)
    denoiser = make_denoiser(pipeline, sampler, model)
    # A policy reads its numbers.
    denoiser.table = build_table(pipeline.scheduler, **type(denoiser).table_options(pipeline, sampler, model))
    if model.quantisation != "none":
        quantise(denoiser.module, model.quantisation)
    return pipeline, denoiser


def count(shape: Shape, checkpointing: bool, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Return parameters, the estimate, and the bytes that the tensors of a round's calls take at their peak."""
    model = ModelSettings(offload_text_encoders=True)
    pipeline, denoiser = on_meta(shape, shape.sampler, model, dtype)
    policy = Policy(denoiser, AdapterSettings())
    if checkpointing:
        for module in _networks(denoiser):
            if module._supports_gradient_checkpointing:
                module.enable_gradient_checkpointing()
    need = estimate(denoiser, shape.batch, shape.micro_batch, training=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in _networks(denoiser):
            _give_fake_storage(module)
        for name, value in vars(denoiser).items():
            if isinstance(value, torch.Tensor):
                setattr(denoiser, name, _fake(value))
        if hasattr(denoiser, "texts"):  # a mask without storage says no lengths
            denoiser.texts = lambda embeddings: list(embeddings["embeddings"].unbind())
        policy.named_parameters = {n: p for n, p in denoiser.module.named_parameters() if p.requires_grad}
        peaks = {
            "sampling": _peak(policy, lambda: _sample(policy, shape, shape.batch)),
            "decode": _peak(policy, lambda: _decode(policy, shape.batch)),
            "decode_with_gradient": _peak(policy, lambda: _decode_and_back(policy, shape.micro_batch)),
            "learning": _peak(policy, lambda: _learn(policy, shape, shape.micro_batch)),
        }
    before = need.weights + need.optimiser
    round_peaks = [peaks[name] for name in ("sampling", "decode", "learning")]
    return {
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in pipeline.components.items()
            if isinstance(part, nn.Module)
        },
        "trained": sum(p.numel() for p in policy.parameters),
        "batch": shape.batch,
        "micro_batch": shape.micro_batch,
        "checkpointing": checkpointing,
        "dtype": str(dtype).removeprefix("torch."),
        "estimated": parts_of(need),
        "counted": {"weights": need.weights, "optimiser": need.optimiser, **peaks, "total": before + max(round_peaks)},
        "gib_per_sample": {
            name: round(peak / (shape.batch if name in ("sampling", "decode") else shape.micro_batch) / GIB, 4)
            for name, peak in peaks.items()
        },
    }


def parts_of(need: MemoryEstimate) -> dict[str, int]:
    """Return an estimate as it stands in the results."""
    names = ("weights", "encoding", "optimiser", "sampling", "decode", "learning", "heap", "total")
    return {name: getattr(need, name) for name in names}


def _give_fake_storage(root: nn.Module) -> None:
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_fake(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _fake(buffer)


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _peak(policy: Policy, work: Callable[[], None]) -> int:
    with Living(*_networks(policy.denoiser)) as living:
        work()
    return living.peak


def _networks(denoiser: Any) -> list[nn.Module]:
    """Return the networks that a round calls: what is trained, and the decoder where there is one."""
    return [denoiser.module, *(part for name, part in denoiser.pipeline.components.items() if name == "vae")]


def _inputs(policy: Policy, shape: Shape, size: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    kinds = {"labels": torch.long, "mask": torch.bool}
    embeddings = {
        name: torch.ones(size, *rest, dtype=kinds.get(name, policy.denoiser.dtype)) for name, rest in shape.embeddings.items()
    }
    x = torch.zeros(size, *policy.denoiser.latent_shape)
    return x, torch.zeros(size, dtype=torch.long), Conditioning(embeddings)


@torch.no_grad()
def _sample(policy: Policy, shape: Shape, size: int) -> None:
    policy.step(*_inputs(policy, shape, size))


@torch.no_grad()
def _decode(policy: Policy, size: int) -> None:
    policy.denoiser.decode(torch.zeros(size, *policy.denoiser.latent_shape))


def _decode_and_back(policy: Policy, size: int) -> None:
    latents = torch.zeros(size, *policy.denoiser.latent_shape, requires_grad=True)
    policy.denoiser.decode(latents).square().mean().backward()


def _learn(policy: Policy, shape: Shape, size: int) -> None:
    _, mean, _ = policy.step(*_inputs(policy, shape, size))
    mean.square().mean().backward()
    for parameter in policy.parameters:
        parameter.grad = None
