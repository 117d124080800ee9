"""A reward of your own: blue pictures, in one function and one call.

python examples/own_reward.py [--rounds 40] [--images 64] [--output runs]
"""

import argparse

from rlcm import TrainConfig, Trainer


def blueness(images, prompts):
    """How much more blue than red and green a picture is: [B, 3, h, w] in [0, 1] -> [B], higher is better."""
    red, green, blue = images.mean(dim=(2, 3)).unbind(1)
    return blue - (red + green) / 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--output", default="runs")
    arguments = parser.parse_args()

    config = TrainConfig(
        output=arguments.output,
        prompts=["a fox", "three frogs", "a yellow star", "a cat and a dog"],
        rollout={"batch_size": arguments.images, "branches": 8},  # eight pictures of one prompt are compared with each other
        algorithm={"advantage": "group", "kl_coefficient": 0.035, "kl_target": 0.075},  # the leash: stay near the base model
        optimizer={"lr": 6.5e-4},
        evaluation={"images": 16},
        run={"rounds": arguments.rounds},
    )
    trainer = Trainer(config, model="builtin", rewards=[blueness])
    folder = trainer.train()
    before, after = (look["reward"]["mean"] for look in (trainer.evaluations[0], trainer.evaluations[-1]))
    print(f"blueness {before:.3f} -> {after:.3f}; look at {folder / 'report.html'}")
