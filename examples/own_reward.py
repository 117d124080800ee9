"""A reward of your own: blue pictures, in one function and one call.

python examples/own_reward.py [--rounds 40] [--images 64] [--output runs]
"""

import argparse

import rlcm


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

    result = rlcm.train(
        rewards=blueness,
        prompts=["a fox", "three frogs", "a yellow star", "a cat and a dog"],
        rounds=arguments.rounds,
        batch_size=arguments.images,
        images=16,
        output=arguments.output,
    )
    print(f"blueness {result.before['reward']:.3f} -> {result.after['reward']:.3f}; look at {result.report}")
