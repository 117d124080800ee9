"""The policy: what an action is, how likely it was, and how a model acts from noise to images."""

from rlcm.policy.policy import AdapterSettings, Policy

__all__ = ["AdapterSettings", "Policy"]
