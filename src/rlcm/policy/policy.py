"""The policy: a denoiser whose LoRA is trained, with its frozen reference and its averaged weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn

from rlcm.errors import ConfigError
from rlcm.policy.transitions import transition
from rlcm.settings import Settings
from rlcm.types import Conditioning, Denoiser

ADAPTER = "rlcm"


class AdapterSettings(Settings):
    """The low-rank adapter that is trained; the model's own weights stay frozen."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank r of the adapter's matrices."""
    alpha: float = Field(default=32, gt=0, le=1_000_000)
    """The adapter's change of a weight is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the linear or convolution layers that get an adapter."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the adapter, taken after every update and used for evaluation and the
    final weights; 0 is off."""


class Policy:
    """A Gaussian policy over latents: mean and std from the sampler's table and the adapted network.

    Args:
        denoiser: see `rlcm.types.Denoiser`; its network gets the adapter, everything else is frozen.
        settings: of the adapter.
        seed: of the adapter's first weights.

    Raises:
        ConfigError: if no layer of the network matches `target_modules`.
    """

    def __init__(self, denoiser: Denoiser, settings: AdapterSettings, seed: int = 0) -> None:
        self.denoiser, self.settings, self.table = denoiser, settings, denoiser.table
        module = denoiser.module
        module.requires_grad_(False)
        check_targets(module, settings)
        # LoRAs that the model came with: injecting another one switches them off.
        others = {
            layer: [name for name in layer.active_adapters if name != ADAPTER]
            for layer in module.modules()
            if isinstance(layer, BaseTunerLayer)
        }
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            # A pattern is matched with whole names: as an ending a name may be that of other modules, too.
            target_modules="|".join(map(re.escape, targets(module, settings))),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")  # for adding a LoRA to 8-bit weights
            torch.manual_seed(seed)
            inject_adapter_in_model(config, module, adapter_name=ADAPTER)
        for layer, names in others.items():
            layer.set_adapter([*names, ADAPTER])
        module.requires_grad_(False)
        self.layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer) and ADAPTER in layer.lora_A]
        self.named_parameters = {
            name: parameter for name, parameter in module.named_parameters() if f".{ADAPTER}." in name and "lora_" in name
        }
        for parameter in self.named_parameters.values():
            # fp32 whatever the frozen weights' precision: small updates vanish in half precision.
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        module.eval()
        self.stds: list[float] = self.table.std.tolist()
        """The table's stds as numbers, so that no step waits for the device to tell them."""
        self.noisy_steps = self.table.to("cpu").noisy_steps()
        """[A] rows of the table that draw noise, on the CPU: the steps that are actions."""
        self.average = {name: p.detach().clone() for name, p in self.named_parameters.items()} if settings.ema_decay else None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, fp32."""
        return list(self.named_parameters.values())

    def step(self, x: Tensor, step: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_0 [B, *latent], mean [B, *latent] and std [B] of the next latent, for states x at table rows `step` [B].

        Sampling and updating both come through here: there is no other way to a mean or a log-probability.
        """
        return transition(self.table, x, self.denoiser.denoise(x, step, conditioning), step)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it, `step` is that of the base model: the adapter is off, and LoRAs that the model came with are on."""
        active = [list(layer.active_adapters) for layer in self.layers]
        for layer, names in zip(self.layers, active, strict=True):
            # peft's set_adapter() would also switch gradients off and on.
            layer._active_adapter = [name for name in names if name != ADAPTER]
        try:
            yield
        finally:
            for layer, names in zip(self.layers, active, strict=True):
                layer._active_adapter = names

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averaged weights towards the present ones; call it after every optimiser step."""
        if self.average is not None:
            present = [p.detach() for p in self.named_parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), present, 1 - self.settings.ema_decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the averaged weights are in place; without an average, the present ones stay."""
        if self.average is None:
            yield
            return
        present = {name: p.detach().clone() for name, p in self.named_parameters.items()}
        self.load(self.average)
        try:
            yield
        finally:
            self.load(present)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put the given adapter weights in place.

        Raises:
            ValueError: if they are not the adapter's, name by name and shape by shape; then nothing is changed.
        """
        check_shapes(weights, self.named_parameters)
        for name, parameter in self.named_parameters.items():
            parameter.copy_(weights[name].to(parameter.device))


def check_shapes(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that weights are those that are wanted; copying would stretch smaller ones in silence.

    Raises:
        ValueError: if a name or a shape differs.
    """
    if weights.keys() != wanted.keys():
        raise ValueError(f"the adapter's weights are others: {min(weights.keys() ^ wanted.keys())} is in one of the two only")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(weights[name].shape)} in place of {tuple(tensor.shape)}")


def targets(module: nn.Module, settings: AdapterSettings) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers of a network that get an adapter, by name; a network without storage for its weights will do."""
    return {
        name: layer
        for name, layer in adaptable_layers(module).items()
        if any(_ends(name, end) for end in settings.target_modules)
    }


def check_targets(module: nn.Module, settings: AdapterSettings) -> None:
    """Check that the adapter binds to something; a network without storage for its weights will do.

    Raises:
        ConfigError: if no layer of the network matches `target_modules`, one of them names what no LoRA can change, or the rank is
            beyond what any of the layers can have.
    """
    layers = adaptable_layers(module)
    for target in settings.target_modules:
        _check_target(module, layers, target)
    bound = targets(module, settings).values()
    if bound:
        most = max(map(_full_rank, bound))
        if settings.rank > most:
            raise ConfigError(
                f"lora.rank={settings.rank} is more than any change of the layers of this {type(module).__name__} can have; use "
                f"1 .. {most}, such as 16."
            )
        return
    kinds = sorted({name.rsplit(".", 1)[-1] for name in layers if not name.rsplit(".", 1)[-1].isdigit()})
    raise ConfigError(
        f"lora.target_modules={list(settings.target_modules)} matches no layer of {type(module).__name__}, so nothing "
        f"would be trained; layers of this network end in {', '.join(kinds[:20])}."
    )


def _check_target(module: nn.Module, layers: Iterable[str], target: str) -> None:
    """Refuse the name of what is in the network, but no layer that a LoRA can change; what is not there may be another network's."""
    if any(_ends(name, target) for name in layers):
        return
    kinds = sorted({type(part).__name__ for name, part in module.named_modules() if _ends(name, target)})
    if kinds:
        tails = {f".{name}".rpartition(f".{target}.")[2] for name in layers if f".{target}." in f".{name}"}
        inside = sorted(f"{target}.{tail}" for tail in tails)
        remedy = f"name layers within it, such as {', '.join(inside[:4])}." if inside else "leave it out."
        raise ConfigError(
            f"lora.target_modules: {target!r} of {type(module).__name__} is of the kind {', '.join(kinds)}, which rlcm gives no LoRA; "
            f"{remedy}"
        )


def adaptable_layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers of a network that a LoRA can change, by name."""
    return {
        name.removesuffix(".base_layer"): layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name
    }


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _full_rank(layer: nn.Linear | nn.Conv2d) -> int:
    """Return the highest rank that a change of a layer's weights can have."""
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    rows, columns = layer.kernel_size
    return min(layer.in_channels // layer.groups * rows * columns, layer.out_channels)
