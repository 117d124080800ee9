"""The methods that the page compares, in its order, and what each of them is."""

ORDER = ("ddpo", "rlcm-published", "rlcm")

ABOUT = {
    "ddpo": "DDPO on the teacher: DDIM with 50 steps, guidance 3 (where this teacher is best), otherwise the settings of "
    "`rlcm-published`; DDPO's own were not tried",
    "rlcm-published": "RLCM with the published settings on the student, guidance 3; with a fifth of DDPO's minutes, "
    "on alignment, where those were not enough, three fifths",
    "rlcm": "the default of this package: branches, a leash and a learning rate that follows it, "
    "tuned on this model and on these tasks",
}
