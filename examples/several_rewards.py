"""Several rewards in one run, each on a scale of its own: small files, that still show what the prompt says, in strong colours.

    python examples/several_rewards.py [--rounds 40] [--images 64] [--output runs]

The same on the command line:

    rlcm train rewards='[{name: jpeg_compressibility, normalise: true}, {name: alignment, weight: 0.5, normalise: true}]'
"""

import argparse

from rlcm import TrainConfig, Trainer

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

    config = TrainConfig(
        output=arguments.output,
        rewards=REWARDS,
        rollout={"batch_size": arguments.images, "branches": 8},
        algorithm={"advantage": "group", "kl_coefficient": 0.035, "kl_target": 0.075},  # the leash: stay near the base model
        optimizer={"lr": 6.5e-4},
        evaluation={"images": 16, "held_out": ["sharpness"]},  # looked at, never learnt from
        run={"rounds": arguments.rounds},
    )
    trainer = Trainer(config)
    folder = trainer.train()
    first, last = trainer.evaluations[0], trainer.evaluations[-1]
    for label, value in last["rewards"].items():
        print(f"{label:24} {first['rewards'][label]['mean']:8.3f} -> {value['mean']:8.3f}")
    print(f"look at {folder / 'report.html'}")
