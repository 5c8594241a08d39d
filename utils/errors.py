"""The exceptions that end a run in one line: a mistake that the user can fix, and an early end with a reason."""


class UsageError(ValueError):
    """A mistake that the user can fix. The message is one line that names the flag or file and the way out."""


class EarlyEnd(Exception):
    """All processes stop before the run is complete.

    Args:
        message: the reason, in one line.
        exit_code: of every process.
        resume_flags: flags to append to this run's command to resume it; None if it should not be resumed.
    """

    def __init__(self, message: str, exit_code: int, resume_flags: list[str] | None = None):
        super().__init__(message)
        self.exit_code = exit_code
        self.resume_flags = resume_flags
