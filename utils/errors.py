"""The two ways in which a run ends early: a mistake of the user's, and an end with a reason."""


class UsageError(ValueError):
    """A mistake that the user can mend. The message is one line that names the flag or file and the way out."""


class EarlyEnd(Exception):
    """All processes end before the run is complete, for a reason that one line tells.

    Args:
        message: that line.
        exit_code: of every process.
        resume_flags: what the command that goes on has beside the flags of this one; None if it should not go on.
    """

    def __init__(self, message: str, exit_code: int, resume_flags: list[str] | None = None):
        super().__init__(message)
        self.exit_code = exit_code
        self.resume_flags = resume_flags
