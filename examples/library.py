"""The parts of the library by themselves: a model, its sampler as a table, a rollout, rewards, advantages, one update.

    python examples/library.py [--rounds 5] [--images 32]

`rlcm.Trainer` does all of this and keeps it; here every step is visible, to be replaced by one of your own.
"""

import argparse

import torch

from rlcm.learning import advantages
from rlcm.learning.losses import ppo_clip
from rlcm.pipelines import ModelSettings, SamplerSettings, load_pipeline, make_denoiser
from rlcm.policy import AdapterSettings, Policy
from rlcm.policy.gaussian import log_ratio
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import rollout


def brightness(images):
    """A reward: the mean of every picture, [B, 3, h, w] -> [B]."""
    return images.mean(dim=(1, 2, 3))


def main(rounds, images):
    """Train for some rounds and yield the mean reward of each."""
    denoiser = make_denoiser(load_pipeline(ModelSettings(path="builtin")), SamplerSettings(steps=4))
    policy = Policy(denoiser, AdapterSettings(rank=16))
    optimizer = torch.optim.AdamW(policy.parameters, lr=3e-3)
    conditioning = denoiser.encode(["a fox", "three frogs", "a yellow star", "a cat and a dog"])
    index = torch.arange(images) % len(conditioning)
    for number in range(1, rounds + 1):
        with torch.no_grad():
            played = rollout(policy, conditioning, index, [image_seed(0, number, i) for i in range(images)])
        rewards = brightness(played.images[:, 0])
        worth = advantages.group(rewards, index)  # against the other pictures of the same prompt

        # One row for each of the B * A states in which an action was drawn; every action of a picture is worth the same.
        calls = played.steps.shape[1]
        states, old, actions = (part.flatten(0, 1) for part in (played.states, played.means, played.actions))
        _, new, std = policy.step(states, played.steps.flatten(), conditioning.take(index.repeat_interleave(calls)))
        ratio = log_ratio(actions, old, new, std, "mean")
        loss = ppo_clip(ratio, worth.repeat_interleave(calls).unsqueeze(1), clip_range=1e-4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield rewards.mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    for number, mean in enumerate(main(arguments.rounds, arguments.images), start=1):
        print(f"round {number}: brightness {mean:.4f}", flush=True)
