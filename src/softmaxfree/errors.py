"""The one kind of error that a user can cause and mend."""

from softmaxfree_cli.errors import InputError

__all__ = ["InputError"]
