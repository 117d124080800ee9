"""Several rewards in one run, each on a scale of its own: small files, that still show what the prompt says, in strong colours.

    python examples/several_rewards.py [--rounds 40] [--images 64] [--output runs]

The same on the command line:

    rlcm train rewards='[{name: jpeg_compressibility, normalise: true}, {name: alignment, weight: 0.5, normalise: true}]'
"""

import argparse

import rlcm

REWARDS = [
    {"name": "jpeg_compressibility", "normalise": True},  # in kilobytes; normalised, it counts like the others
    {"name": "alignment", "weight": 0.5, "normalise": True},  # does the picture fit its prompt?
    {"name": "examples/own_reward.py:blueness", "weight": -0.2, "normalise": True},  # a negative weight is a penalty
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--output", default="runs")
    arguments = parser.parse_args()

    result = rlcm.train(
        rewards=REWARDS,
        rounds=arguments.rounds,
        batch_size=arguments.images,
        output=arguments.output,
        evaluation={"images": 16, "held_out": ["sharpness"]},  # looked at, never learnt from
    )
    for label, value in result.after.items():
        if label.startswith("rewards."):
            print(f"{label.removeprefix('rewards.'):24} {result.before[label]:8.3f} -> {value:8.3f}")
    print(f"look at {result.report}")
