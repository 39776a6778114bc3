"""The one kind of error that a user can cause and mend; `softmaxfree.errors` hands it on."""

__all__ = ["InputError"]


class InputError(ValueError):
    """What was given is wrong; the message names it, says what was given and what is allowed.

    Commands print it as one line. Every other `ValueError` is a bug and keeps its traceback.
    """
