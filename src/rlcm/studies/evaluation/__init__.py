"""How good a model is: its rewards at several numbers of steps, on prompts it was trained on and on others, beside its base."""

from __future__ import annotations

from rlcm.studies.evaluation.draw import Drawn, draw_set
from rlcm.studies.evaluation.sets import Group, prompt_sets
from rlcm.studies.evaluation.study import StudySettings, check_steps, default_rewards, own_folder, study

__all__ = [
    "Drawn",
    "Group",
    "StudySettings",
    "check_steps",
    "default_rewards",
    "draw_set",
    "own_folder",
    "prompt_sets",
    "study",
]
