"""What ends a run early. Each kind has its own exit status, so that a job script can tell what to do next."""


class TrainingError(Exception):
    """A run that cannot go on. `exit_status` is what the command ends with."""

    exit_status = 2


class ConfigError(TrainingError):
    """An option that is unknown, of the wrong type or impossible."""


class CheckpointError(TrainingError):
    """A checkpoint that is absent, incomplete, corrupt or of another model."""


class NotFiniteError(TrainingError):
    """The loss or the gradient norm became NaN or infinite; no update was made from it."""

    exit_status = 3


class DiskFullError(TrainingError):
    """No space was left for a checkpoint or a log line; the last complete checkpoint is untouched."""

    exit_status = 4


class OutOfMemoryError(TrainingError):
    """The device or the machine had no memory for a step."""

    exit_status = 5


class StoppedError(TrainingError):
    """A signal asked the run to stop; a checkpoint was saved first. Exit status 128 + the signal's number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal


# Shown in the help of the commands that train.
EXIT_STATUSES = {
    0: "done",
    2: "a mistake in the options, the data or the run's folder",
    NotFiniteError.exit_status: "the loss or a gradient became NaN or infinite (the batch is saved)",
    DiskFullError.exit_status: "the disk is full (the last complete checkpoint is intact)",
    OutOfMemoryError.exit_status: "out of memory (the message names a token budget that would fit)",
    130: "stopped by SIGINT after saving a checkpoint",
    143: "stopped by SIGTERM after saving a checkpoint",
}
