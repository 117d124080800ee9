"""Modules that have moved: their former names still import them, and say the new ones."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

FOLDERS = {
    "cli": ("completion",),
    "distillation": ("distill", "fit"),
    "learning": ("advantages", "algorithm", "backprop", "credit", "losses", "optimisation", "updates"),
    "policy": ("gaussian", "noise", "rollout", "samplers", "transitions"),
    "processes": ("distributed", "machine", "memory_retry", "sharding"),
    "report": ("templating",),
    "rewards/image": ("jpeg", "pixels"),
    "rewards/learned": ("bertscore", "clip", "hub"),
    "rewards/served": ("http", "server", "wire"),
    "runs": ("checkpoint", "rundir", "serialization", "trackers"),
    "sharing": ("formats", "hub_card", "push", "tuned"),
    "studies": ("compare", "intervals", "reproduce"),
    "training": ("build", "config", "evaluate", "interrupts", "learner", "prompts", "trainer", "watch"),
    "tuning": ("progress",),
}
"""The modules that stood beside these folders before there were any, by the folder in which they are now."""
MOVED = {
    ".".join(["rlcm", *folder.split("/")[:-1], name]): ".".join(["rlcm", *folder.split("/"), name])
    for folder, names in FOLDERS.items()
    for name in names
} | {
    "rlcm.cli.progress": "rlcm.tuning.progress",
    "rlcm.export": "rlcm.training.final",
    "rlcm.lora_keys": "rlcm.pipelines.lora_keys",
    "rlcm.rewards.builtin": "rlcm.rewards.learned.alignment",
    "rlcm.rewards.compose": "rlcm.rewards.composition",
    "rlcm.sharing.lora_keys": "rlcm.pipelines.lora_keys",
    "rlcm.study": "rlcm.studies.evaluation",
}
"""Where each of them is now."""


class FormerNames(MetaPathFinder, Loader):
    """Finds a module by its former name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import what stands under a former name; None for any other."""
        return spec_from_loader(fullname, self) if present_name(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its present name."""
        name = present_name(spec.name) or spec.name
        warnings.warn(f"{spec.name} is now {name}", DeprecationWarning, stacklevel=2)
        module = import_module(name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is: it has been executed under its present name, whose specification it keeps."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def present_name(name: str) -> str | None:
    """Return where a module, or the package of a module, has moved to; None where it has not."""
    if not name.startswith("rlcm."):
        return None
    if name in MOVED:
        return MOVED[name]
    package, dot, rest = name.rpartition(".")
    present = present_name(package) if dot else None
    return present and f"{present}.{rest}"


def keep_former_names() -> None:
    """Let former names be imported."""
    sys.meta_path.insert(0, FormerNames())  # before what would find the parts of a moved package twice
