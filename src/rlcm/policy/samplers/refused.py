"""Well-known schedulers that cannot be a table of Gaussian steps."""

from __future__ import annotations

from collections.abc import Mapping

_HISTORY = "its step needs earlier model outputs, so it is no Gaussian given the latent alone"
_CHURN = "it is deterministic, and with s_churn it adds noise before the network call, whose output then is not Gaussian"
_TWO_CALLS = "its step needs two network calls, so its noise passes through the network"

NOT_TABLES: Mapping[str, str] = {
    "DDIMInverseScheduler": "it runs from data to noise and draws none",
    "DEISMultistepScheduler": _HISTORY,
    "DPMSolverMultistepScheduler": _HISTORY,
    "DPMSolverSinglestepScheduler": _HISTORY,
    "DPMSolverSDEScheduler": _TWO_CALLS,
    "EDMDPMSolverMultistepScheduler": _HISTORY,
    "EDMEulerScheduler": _CHURN,
    "EulerDiscreteScheduler": _CHURN,
    "FlowMatchHeunDiscreteScheduler": _TWO_CALLS,
    "HeunDiscreteScheduler": _TWO_CALLS,
    "KDPM2AncestralDiscreteScheduler": _TWO_CALLS,
    "KDPM2DiscreteScheduler": _TWO_CALLS,
    "LMSDiscreteScheduler": _HISTORY,
    "PNDMScheduler": _HISTORY,
    "SASolverScheduler": _HISTORY,
    "UniPCMultistepScheduler": _HISTORY,
}
"""Well-known schedulers that cannot be a table, and why."""
