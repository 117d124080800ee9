"""RLCM on one page: reinforcement learning for consistency models (Oertell et al. 2024, arXiv:2404.03673, algorithm 1).

    python examples/minimal_rlcm.py [--rounds 20] [--images 64]

Tunes the built-in model towards pictures that make small JPEG files. This is the algorithm alone, to be read: no leash, no
evaluation, nothing kept. Every draw has a seed of its own, so `rlcm train` with the same settings gives the same rewards and
the same weights (`tests/project/test_minimal_example.py` holds it to that).
"""

import argparse
import io
from collections import defaultdict, deque
from statistics import fmean, pstdev

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from PIL import Image

from rlcm.builtin import model_path
from rlcm.builtin.vocabulary import CLASSES, article
from rlcm.policy.noise import draw, image_seed, stream


def compressibility(images, prompts):
    """The reward r(x_0, c): minus the size of each picture [B, 3, h, w] as a JPEG file, in kB."""

    def size(picture):
        Image.fromarray(picture).save(file := io.BytesIO(), "JPEG", quality=95)
        return file.tell() / 1000

    return torch.tensor([-size(picture) for picture in (255 * images).round().byte().permute(0, 2, 3, 1).numpy()])


def rlcm(pipe, prompts, reward, *, rounds=20, images=64, steps=4, guidance=3.0, rank=16, alpha=32, lr=3e-3, minibatches=1,
         clip_range=1e-4, remembered=32, needed=16, seed=0):  # fmt: skip
    """Train a LoRA on `pipe.unet` and yield the mean reward of every round."""
    unet, vae, scheduler = pipe.unet.requires_grad_(False).eval(), pipe.vae, pipe.scheduler
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian"))
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-4)
    with torch.no_grad():
        text, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    scale = pipe.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=unet.config.time_cond_proj_dim)

    # The sampler's times tau_0 > ... > tau_{H-1}, H = steps; x_tau = sqrt(abar) x_0 + sqrt(1 - abar) eps.
    scheduler.set_timesteps(steps)
    tau = scheduler.timesteps
    abar = scheduler.alphas_cumprod[tau].double()
    abar_next = torch.cat([abar[1:], torch.ones(1)])  # after the last step: x_0 itself
    std = (1 - abar_next).sqrt()
    signal, noise = abar.sqrt(), (1 - abar).sqrt()
    x_0 = {"epsilon": (1 / signal, -noise / signal), "v_prediction": (signal, -noise)}[scheduler.config.prediction_type]
    k = tau.double() * scheduler.config.timestep_scaling
    c_skip, c_out = 0.25 / (k**2 + 0.25), k / (k**2 + 0.25).sqrt()

    def policy_mean(x, t, prompt):
        """The mean of pi(x_{tau_{t+1}} | x_{tau_t}, c): sqrt(abar') f_theta(x, t, c). Its std is sqrt(1 - abar')."""
        output = unet(x, tau[t], text[prompt], timestep_cond=scale.expand(len(x), -1)).sample
        predicted = row(x_0[0], t) * x + row(x_0[1], t) * output
        return row(abar_next.sqrt() * c_out, t) * predicted + row(abar_next.sqrt() * c_skip, t) * x

    def row(coefficients, t):
        return coefficients.float()[t].view(-1, 1, 1, 1)

    memory = defaultdict(lambda: deque(maxlen=remembered))  # the last rewards of every prompt
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    for number in range(1, rounds + 1):
        # Sample a batch of prompts (shuffled whole passes), and run the H-step sampler from noise to pictures.
        prompt = torch.tensor([dealt(i, len(prompts), seed) for i in range((number - 1) * images, number * images)])
        streams = [stream(image_seed(seed, number, i)) for i in range(images)]
        x, states, means, actions = draw(streams, shape), [], [], []
        with torch.no_grad():
            for t in range(steps - 1):
                states.append(x)
                means.append(policy_mean(x, torch.full((images,), t), prompt))
                x = means[-1] + std[t].item() * draw(streams, shape)  # the action, and the next state
                actions.append(x)
            x = policy_mean(x, torch.full((images,), steps - 1), prompt)  # no noise: no action
            pictures = (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        states, means, actions = (torch.stack(part, dim=1) for part in (states, means, actions))

        # Reward, normalised per prompt; by the batch until a prompt has enough rewards of its own.
        rewards = reward(pictures, [prompts[i] for i in prompt]).tolist()
        for i, r in zip(prompt.tolist(), rewards, strict=True):
            memory[i].append(r)
        compared = [memory[i] if len(memory[i]) >= needed else rewards for i in prompt.tolist()]
        worth = [(r - fmean(others)) / (pstdev(others) + 1e-6) for r, others in zip(rewards, compared, strict=True)]
        advantages = torch.tensor(worth).clamp(-10, 10)

        # PPO: every action of a minibatch of pictures, all steps at once.
        shuffled = torch.randperm(images, generator=stream(image_seed(seed, number, "learning")))
        for chosen in shuffled.tensor_split(minibatches):
            chosen = chosen.sort().values
            t = torch.arange(steps - 1).repeat(len(chosen))
            s, old, a = (part[chosen].flatten(0, 1) for part in (states, means, actions))
            new = policy_mean(s, t, prompt[chosen].repeat_interleave(steps - 1))
            # log pi_theta(a|s) - log pi_old(a|s) per latent entry; written so that it is exactly 0 where the two agree.
            z, u = (a - old) / row(std, t), (new - old) / row(std, t)
            ratio = (z * u - u**2 / 2).flatten(1).mean(1).exp()
            advantage = advantages[chosen].repeat_interleave(steps - 1)
            clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 5.0)
            optimizer.step()
        yield fmean(rewards)


def dealt(position, prompts, seed):
    """Which prompt comes at a position in an endless sequence of shuffled passes."""
    turn, place = divmod(position, prompts)
    return torch.randperm(prompts, generator=stream(seed * 1_000_003 + turn))[place]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(model_path("student"))
    things = [article(name) for name in CLASSES]
    learning = rlcm(pipeline, things, compressibility, rounds=arguments.rounds, images=arguments.images)
    for number, mean in enumerate(learning, start=1):
        print(f"round {number:3d}: reward {mean:.4f}", flush=True)
