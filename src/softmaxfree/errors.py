"""The one kind of error that a user can cause and mend, and what it says of weights."""

from softmaxfree_cli.errors import InputError

__all__ = ["InputError", "NoWeightsError"]


class NoWeightsError(InputError):
    """Published weights of a model cannot be had; the message is for who called `timm.create_model`.

    Args:
        message: what is wrong, and what to do in Python.
        why: what is wrong alone, for who says it in other words.
        url: where a browser finds the weights; "" if nowhere.
    """

    def __init__(self, message: str, why: str, url: str = "") -> None:
        super().__init__(message)
        self.why = why
        self.url = url

    def on_command_line(self, option: str) -> InputError:
        """Return the error for who gave an option such as `--init-from`, which takes a file too."""
        file = f"get {self.url} with a browser and give that file" if self.url else "give a file of weights"
        return InputError(f"{self.why}; {file}: {option} FILE")
