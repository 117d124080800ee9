"""Every error that users meet. Each message names the setting, its value, what is accepted and the remedy."""


class RLCMError(Exception):
    """Root of all errors that the product raises on purpose; the command line prints its text without a traceback."""

    exit_code = 1
    """With which the command line ends."""


class UsageError(RLCMError):
    """The command or the configuration asks for something that cannot be; nothing has been started."""

    exit_code = 2
    """With which the command line ends."""


class ConfigError(UsageError):
    """A setting is unknown, has the wrong type or is out of range."""


class MissingFileError(UsageError):
    """A file, folder, font or model that a setting names is not there."""


class WeightsError(UsageError):
    """A file of weights is damaged, empty, or made for another network."""


class SamplerError(UsageError):
    """The sampler cannot be written as a table of Gaussian transitions, or has no noise to learn from."""


class RunDirectoryError(RLCMError):
    """The run directory cannot be created, read or written."""


class UnreadableFileError(RunDirectoryError):
    """A file of a run is no file, too long, damaged, or may not be read; `reason` says which."""

    def __init__(self, file: object, reason: str) -> None:
        super().__init__(f"{file} cannot be read: {reason}.")
        self.reason = reason


class CheckpointError(RLCMError):
    """A checkpoint is missing, damaged or does not fit the run."""


class RewardError(RLCMError):
    """A reward function raised, or returned the wrong shape, NaN or infinity."""


class PreflightError(RLCMError):
    """A check before training failed: the ratio is not 1, no gradient arrives, or the reward has no variance."""


class TrainingError(RLCMError):
    """Training cannot go on: non-finite losses or gradients, or memory that no micro-batch fits."""


class ProcessError(RLCMError):
    """Another process of the run failed, was lost, or cannot be met."""
