"""The policy: what is trained, what the reference is, and the averaged weights."""

import pytest
import torch
from tiny_runs import PROMPTS, STEPS, largest_difference, stir, tiny_denoiser, tiny_policy

from rlcm.errors import ConfigError
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.transitions import transition


def states(denoiser):
    """Return latents, table rows and conditioning for five states at mixed steps."""
    x = torch.randn(5, *denoiser.latent_shape, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([0, 2, 1, 1, 0]), denoiser.encode(PROMPTS).take(torch.tensor([0, 1, 2, 1, 0]))


def test_only_the_adapter_is_trained():
    policy = tiny_policy()
    trained = {name for name, p in policy.denoiser.module.named_parameters() if p.requires_grad}
    assert trained == set(policy.named_parameters)
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert not policy.denoiser.module.training


def test_adapter_is_fp32_on_a_half_precision_network():
    denoiser = tiny_denoiser()
    denoiser.module.to(torch.bfloat16)
    policy = tiny_policy(denoiser)
    assert {p.dtype for p in policy.parameters} == {torch.float32}
    assert denoiser.dtype == torch.bfloat16
    x0, mean, std = policy.step(*states(denoiser))
    assert {x0.dtype, mean.dtype, std.dtype} == {torch.float32}
    mean.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters)


def test_step_is_the_transition_of_the_untouched_model_at_first():
    untouched, policy = tiny_denoiser(), tiny_policy()
    x, step, conditioning = states(untouched)
    expected = transition(untouched.table, x, untouched.denoise(x, step, conditioning), step)
    for found, wanted in zip(policy.step(x, step, conditioning), expected, strict=True):
        assert torch.equal(found, wanted)


def test_reference_is_the_untouched_model_after_the_adapter_was_changed():
    untouched, policy = tiny_denoiser(), tiny_policy()
    inputs = states(untouched)
    expected = untouched.denoise(*inputs)
    stir(policy)
    tuned = policy.step(*inputs)[1]
    with policy.reference():
        assert torch.equal(policy.denoiser.denoise(*inputs), expected)
        with pytest.raises(KeyError), policy.reference():
            raise KeyError
    assert torch.equal(policy.step(*inputs)[1], tuned)
    assert largest_difference(policy.denoiser.denoise(*inputs), expected) > 1e-2


def test_targets_that_match_nothing_are_refused_with_the_names_that_exist():
    with pytest.raises(ConfigError, match=r"lora\.target_modules=\['query'\] matches no layer.*to_q"):
        tiny_policy(target_modules=("query",))
    with pytest.raises(ConfigError, match="matches no layer"):
        tiny_policy(target_modules=("o_q",))  # the end of a name means whole parts of it


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("to_out", r"'to_out' of UNet2DConditionModel is of the kind ModuleList.*such as to_out\.0\.$"),
        ("to_out.1", r"is of the kind Dropout, which rlcm gives no LoRA; leave it out\.$"),
        ("attn1", r"is of the kind Attention.*such as attn1\.to_k, attn1\.to_out\.0, attn1\.to_q, attn1\.to_v\.$"),
    ],
)
def test_what_no_lora_can_change_is_refused_beside_what_one_can(target, said):
    with pytest.raises(ConfigError, match=said):
        tiny_policy(target_modules=("to_q", target))


def test_layers_get_an_adapter_and_others_of_the_same_name_none():
    names = [name.split(".lora_")[0] for name in tiny_policy(target_modules=("0",)).named_parameters]
    assert names
    assert all(name.endswith(".0") for name in names)


def test_convolutions_take_adapters_too():
    policy = tiny_policy(target_modules=("conv_in", "to_q"))
    assert any("conv_in.lora_A" in name for name in policy.named_parameters)
    inputs = states(policy.denoiser)
    before = policy.step(*inputs)[1]
    assert largest_difference(stir(policy).step(*inputs)[1], before) > 1e-3


def test_first_weights_depend_on_the_seed_alone():
    denoisers = [tiny_denoiser() for _ in range(3)]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, other = (Policy(d, AdapterSettings(rank=4), seed) for d, seed in zip(denoisers, (1, 1, 2), strict=True))
    assert torch.equal(torch.rand(2), expected)
    for name, parameter in first.named_parameters.items():
        assert torch.equal(parameter, again.named_parameters[name])
    assert not torch.equal(first.parameters[0], other.parameters[0])


def test_average_follows_and_comes_into_place_for_a_while():
    policy = tiny_policy(ema_decay=0.75)
    expected = {name: p.detach().clone() for name, p in policy.named_parameters.items()}
    for seed in (1, 2):
        stir(policy, seed=seed)
        policy.follow()
        for name, p in policy.named_parameters.items():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    present = {name: p.detach().clone() for name, p in policy.named_parameters.items()}
    with policy.averaged():
        for name, p in policy.named_parameters.items():
            torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-6)
    for name, p in policy.named_parameters.items():
        assert torch.equal(p, present[name])
        assert not torch.equal(p, policy.average[name])


def test_without_an_average_the_present_weights_stay():
    policy = stir(tiny_policy())
    before = policy.parameters[0].detach().clone()
    policy.follow()
    with policy.averaged():
        assert torch.equal(policy.parameters[0], before)
    assert policy.average is None
    assert len(policy.table) == STEPS
