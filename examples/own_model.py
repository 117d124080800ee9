"""A model of your own: any folder that `pipeline.save_pretrained` wrote, tuned, and loaded again by plain diffusers.

    python examples/own_model.py [--model FOLDER] [--rounds 20] [--images 32] [--output runs]

Without --model the built-in model is saved to a folder first, and stands for yours.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import rlcm
from rlcm.builtin import model_path

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--output", default="runs")
    arguments = parser.parse_args()

    folder = arguments.model
    if folder is None:
        folder = Path(arguments.output) / "my-model"
        DiffusionPipeline.from_pretrained(model_path("student")).save_pretrained(folder)

    result = rlcm.train(
        model=folder,
        rewards="jpeg_compressibility",
        prompts=["a fox", "an owl", "a red car"],
        rounds=arguments.rounds,
        batch_size=arguments.images,
        images=12,
        output=arguments.output,
    )

    # From here on without rlcm: the result is a LoRA.
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(result.path / "final")
    picture = pipeline("a fox", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images[0]
    picture.save(result.path / "fox.png")
    print(f"{result.path / 'fox.png'}: a fox by the tuned model")
