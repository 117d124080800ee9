"""Writes the trained parts as fp16 safetensors in plain diffusers and transformers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, LatentConsistencyModelPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from rlcm.builtin.detector import Detector
from rlcm.recipe.teacher import student_scheduler, teacher_scheduler


def pack_generator(
    kind: str, unet: Any, vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, weights: Path
) -> None:
    """Write `kind` ("student" or "teacher") as a pipeline folder; `unet` and the others are left in fp32."""
    classes = {
        "student": (LatentConsistencyModelPipeline, student_scheduler),
        "teacher": (StableDiffusionPipeline, teacher_scheduler),
    }
    pipeline_class, scheduler = classes[kind]
    pipeline = pipeline_class(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = weights / kind
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for part in (unet, vae, encoder):
        part.float()
    _say_float32(folder / "text_encoder" / "config.json")
    _forget_origin(folder)
    # The names that every transformers version reads.
    file = folder / "text_encoder" / "model.safetensors"
    names = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    save_file(names, file, metadata={"format": "pt"})
    _write_slow_tokenizer(tokenizer, folder / "tokenizer")


def pack_detector(detector: Detector, folder: Path) -> None:
    """Write a detector's weights in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous().cpu() for name, tensor in detector.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def pack_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, weights: Path) -> None:
    """Write the small CLIP in fp16, with its tokenizer beside it."""
    folder = weights / "clip"
    clip.half().save_pretrained(folder)
    clip.float()
    _say_float32(folder / "config.json")
    tokenizer.save_pretrained(folder)
    _write_slow_tokenizer(tokenizer, folder)


def _forget_origin(folder: Path) -> None:
    """Take out of the parts' configurations where they were loaded from: a path of the machine that made them."""
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")


def _say_float32(file: Path) -> None:
    """Make transformers load the half-precision file in fp32, as diffusers does with the other parts."""
    config = json.loads(file.read_text())
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = "float32"
    file.write_text(json.dumps(config, indent=2) + "\n")


def _write_slow_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, which transformers 4 reads."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
