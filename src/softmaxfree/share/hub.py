"""The way to the model hub. Tokens are those of huggingface_hub, which finds them itself; none is seen here."""

from pathlib import Path

from softmaxfree.errors import InputError

__all__ = ["check_repository", "upload"]


def check_repository(name: str) -> None:
    """Raises InputError unless a name is of the form `user/name`, as the hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        raise InputError(f"REPOSITORY must be user/name, got {name!r}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"REPOSITORY: {_first(error)}") from error


def upload(folder: str | Path, repository: str, private: bool = False, message: str = "Add model") -> str:
    """Send a folder to the hub, as one commit; the repository is made if need be.

    Args:
        folder: of the files.
        repository: `user/name`.
        private: whether a new repository can be seen by its owner alone.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    check_repository(repository)
    api, hub = HfApi(), constants.ENDPOINT
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise InputError(f"{hub} asks who you are: run `hf auth login` first") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            raise InputError(
                f"{hub} refuses to write {repository} ({code}): run `hf auth login` with a token that may write"
            ) from error
        raise InputError(f"{hub} answers {code} for {repository}: {_first(error)}") from error
    except Exception as error:  # without a network, each transport has its own
        raise InputError(f"{hub} cannot be reached: {_first(error)}") from error
    return str(made)


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
