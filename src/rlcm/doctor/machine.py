"""What the doctor looks at on the machine: versions, device and precision, memory."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rlcm._version import __version__
from rlcm.doctor.findings import Finding
from rlcm.errors import ConfigError, RunDirectoryError
from rlcm.pipelines.precision import resolve
from rlcm.policy.policy import Policy
from rlcm.processes.machine import available_memory
from rlcm.training.beginning import require_free_name
from rlcm.training.config import TrainConfig
from rlcm.training.fitting import check_memory, memory_need

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
GIB = 2**30
LESS_MEMORY = (
    "lower rollout.sample_batch_size and run.micro_batch_size (results stay the same), set model.gradient_checkpointing=true, "
    "model.offload_text_encoders=true or model.vae_slicing=true, store the frozen weights in 8 or 4 bits with "
    "model.quantisation=int8 or nf4, or make smaller images with model.height and model.width."
)


def versions() -> Finding:
    """Return which versions of Python and of the libraries are installed."""
    found = {"rlcm": __version__, "python": platform.python_version()}
    missing = []
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    return Finding("versions", text, not missing, f"install {', '.join(missing)}: pip install -c constraints.txt -e .")


def folder(config: TrainConfig) -> list[Finding]:
    """Return that the name is taken, if it is: for information, as it may be the run's own configuration that is looked at."""
    try:
        require_free_name(config)
    except RunDirectoryError as error:
        return [Finding("name", str(error))]
    return []


def machine(config: TrainConfig) -> tuple[Finding, Finding]:
    """Return the device, and the precision of the frozen weights on it.

    Raises:
        ConfigError: if the machine lacks the device.
    """
    device, dtype = resolve(config.model)
    name = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    dtype_name = str(dtype).removeprefix("torch.")
    native = (
        dtype == torch.float32
        or (device.type == "cuda" and (dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)))
        or (device.type == "mps" and dtype == torch.float16)
        or (device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())
    )
    kind = config.model.quantisation
    quantised = "" if kind == "none" else f", the network's linear layers stored as {kind}"
    instead = "fp16" if device.type == "cuda" else "fp32"
    return (
        Finding("device", f"{device.type} ({name})"),
        Finding(
            "precision",
            f"{dtype_name} weights{quantised}; latents, transitions and LoRA in float32",
            native,
            f"model.precision={config.model.precision}: this {device.type} device does not compute in {dtype_name} and "
            f"emulates it, up to a hundred times slower; use model.precision={instead} or auto.",
        ),
    )


def memory(policy: Policy, config: TrainConfig) -> Finding:
    """Return the estimated need against what the device has; the weights are there already."""
    denoiser: Any = policy.denoiser
    try:
        check_memory(policy, denoiser, config)
    except ConfigError as error:
        return Finding("memory", "not enough", ok=False, remedy=str(error))
    need = memory_need(denoiser, config)
    there = available_memory(denoiser.device) + need.weights
    return Finding(
        "memory",
        f"{need}; {there / GIB:.1f} GiB to be had",
        need.total <= there,
        f"the run needs about {need.total / GIB:.1f} GiB and there are {there / GIB:.1f}: {LESS_MEMORY}",
        {"need_bytes": need.total, "there_bytes": there},
    )
