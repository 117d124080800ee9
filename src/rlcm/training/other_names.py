"""What other programs call settings, so that somebody who types such a name is told ours."""

from __future__ import annotations

from collections.abc import Sequence

_OURS: dict[str, tuple[str, ...]] = {
    "name": ("run_name", "experiment_name", "exp_name"),
    "output": ("output_dir", "out_dir", "logging_dir", "logdir", "save_dir"),
    "model.path": ("pretrained_model_name_or_path", "model_id", "model_name", "model_path", "base_model"),
    "model.precision": ("mixed_precision", "dtype", "torch_dtype", "fp16", "bf16", "half"),
    "sampler.steps": ("num_inference_steps", "inference_steps", "num_steps", "sample_num_steps", "n_steps"),
    "sampler.guidance": ("guidance_scale", "cfg", "cfg_scale", "sample_guidance_scale"),
    "lora.rank": ("lora_rank", "lora_r", "r"),
    "lora.alpha": ("lora_alpha",),
    "lora.target_modules": ("lora_target_modules", "target_module", "lora_layers"),
    "prompts": ("prompt_file", "prompts_file", "prompt_fn", "prompt_function", "dataset", "train_data"),
    "rewards": ("reward_fn", "reward_function", "reward_func", "reward_funcs", "reward_model"),
    "rollout.batch_size": ("batch", "train_batch_size", "per_device_train_batch_size"),
    "rollout.images_per_prompt": ("num_images_per_prompt", "num_generations", "group_size", "num_image_per_prompt"),
    "algorithm.loss": ("algo", "method"),
    "algorithm.clip_range": ("clip", "epsilon", "cliprange", "clip_eps"),
    "algorithm.inner_epochs": ("num_inner_epochs", "ppo_epochs", "num_inner_epoch"),
    "algorithm.kl_coefficient": ("kl", "kl_weight", "kl_beta", "kl_coef", "kl_coeff", "init_kl_coef", "beta"),
    "optimizer.name": ("optim", "optimizer_type"),
    "optimizer.lr": ("learning_rate", "learningrate"),
    "optimizer.weight_decay": ("adam_weight_decay",),
    "seed": ("random_seed", "manual_seed", "set_seed"),
    "optimizer.schedule": ("lr_scheduler", "lr_scheduler_type", "lr_schedule"),
    "optimizer.max_grad_norm": ("grad_clip", "gradient_clip", "gradient_clipping", "clip_grad_norm"),
    "evaluation.every": ("eval_every", "eval_freq", "eval_steps"),
    "run.rounds": (
        *("round", "epochs", "num_epochs", "n_rounds", "num_rounds", "iterations", "num_iterations", "max_steps"),
        *("max_train_steps", "num_train_epochs"),
    ),
    "run.time_limit_minutes": ("minutes", "time_limit", "max_minutes"),
    "run.micro_batch_size": ("micro_batch",),
    "run.save_every": ("save_freq", "save_steps", "checkpointing_steps"),
    "run.tracker": ("report_to", "logger", "log_with", "use_wandb", "wandb"),
}
_BY_NAME = {theirs: ours for ours, names in _OURS.items() for theirs in names}
_OF_A_LORA = ("weight", "strength", "multiplier", "adapter_weight", "lora_scale")


def ours(location: Sequence[str | int], known: Sequence[str], *, is_near: bool = False) -> str | None:
    """Return the dotted name of the setting that a key of another program means; None of one that is not known.

    Args:
        location: the key and the groups that it stands in; a place in a list as a number.
        known: the dotted names that there are.
        is_near: whether there is a setting of a similar name in the same group, which it is then rather than one of another group.
    """
    *path, word = location
    if [*map(str, path[:2])] == ["model", "loras"]:
        return ".".join([*map(str, path), "scale"]) if word in _OF_A_LORA else None
    found = _BY_NAME.get(str(word).lower(), "")
    if found not in known:
        found = found.rpartition(".")[2]  # `distill` has some of them without a group, such as lr
    if found not in known or path[:1] == ["rewards"]:
        return None
    return found if not path or found.startswith(f"{path[0]}.") or not is_near else None
