"""Which rewards a run learns from, and how much each of them counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rlcm.addresses import check_address, is_address
from rlcm.settings import Settings
from rlcm.yaml_text import read_yaml

OnFailure = Literal["stop", "skip"]

TIMEOUT_SECONDS = 600.0
"""How long a reward may take, if nothing else is said."""


class RewardSettings(Settings):
    """One entry of the list `rewards:`; a bare string is short for `name: <string>`."""

    name: str = Field(min_length=1)
    """A built-in name (see `rlcm rewards list`), `module:function`, `path/to/file.py:function`, or the address of a
    reward server, `http://host:port`; a secret in it stands as `${VARIABLE}`, and is read from the environment."""
    weight: float = 1.0
    """The factor of this reward in the sum; negative turns it into a penalty."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments: of the built-in reward, of the user's function or class, or of the client of a server."""
    normalise: bool = False
    """Subtract a running mean and divide by a running standard deviation before weighting, so that rewards of different
    scales count alike."""
    label: str = Field(default="", pattern=r"^[^/\s]*$")
    """The name in logs and tables, without spaces and slashes, and not `total`; left out, it is the function's or server's own."""
    on_failure: OnFailure = "stop"
    """When the reward fails for good: `stop` ends the run with its state saved; `skip` drops the samples it could not
    score from the round, and counts them."""
    timeout_seconds: float = Field(default=TIMEOUT_SECONDS, gt=0)
    """How long one call of the reward may take, and its import and its construction, before it counts as failed. With several
    processes it should be less than `run.timeout_seconds`, so that the reward is named and not the process that waits for it."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and isinstance(value.get("name"), str) and not value.get("label"):
            value = {**value, "label": default_label(value["name"])}
        return value

    @field_validator("name")
    @classmethod
    def _is_sound(cls, value: str) -> str:
        if is_address(value):
            check_address(value)
        return value

    @field_validator("args")
    @classmethod
    def _hold_no_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        servers = value.get("servers")
        for address in (value.get("endpoint"), *(servers if isinstance(servers, list) else ())):
            if isinstance(address, str) and is_address(address):
                check_address(address)
        return value

    @field_validator("label")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == "total":
            raise ValueError("the label total is taken by the sum of all rewards; choose another.")
        return value


def entry_of(text: str) -> Any:
    """Return an entry of `rewards:` as typed on the command line or the page: a name, or YAML such as `{name: x, weight: 2}`.

    Raises:
        ValueError: if what begins with a brace is no YAML.
    """
    return read_yaml(text) if text.lstrip().startswith("{") else text.strip()


def default_label(name: str) -> str:
    """Return what a reward is called in logs: the server's host and port, the function, or the built-in name itself."""
    if is_address(name):
        return re.split(r"[/?#]", name.split("://", 1)[1], maxsplit=1)[0].rpartition("@")[2]
    return "".join(name.rpartition(":")[2].split()).replace("/", "-")


def _distinct(rewards: Sequence[RewardSettings]) -> Sequence[RewardSettings]:
    labels = [reward.label for reward in rewards]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two rewards are labelled {', '.join(twice)}; give each its own `label`.")
    return rewards


RewardList = Annotated[list[RewardSettings], Field(min_length=1), AfterValidator(_distinct)]
"""The type of the setting `rewards:`: at least one reward, labels distinct."""
OtherRewards = Annotated[tuple[RewardSettings, ...], AfterValidator(_distinct)]
"""The type of a setting that may name rewards, labels distinct."""
