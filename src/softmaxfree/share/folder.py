"""What a repository of the hub holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from softmaxfree.atomic import atomic_write
from softmaxfree.tasks.pretrained import save_pretrained

__all__ = ["FILES", "write_folder"]

FILES = ("README.md", "config.json", "model.safetensors")


def write_folder(
    model: nn.Module, folder: str | Path, data_config: dict[str, Any], class_names: Sequence[str], card: str
) -> list[str]:
    """Write `config.json`, `model.safetensors` and `README.md`.

    Args:
        model: made by `timm.create_model`.
        folder: where to write; files of these names are replaced.
        data_config: how images are prepared.
        class_names: in the order of the outputs.
        card: the text of the README.

    Returns:
        The names of the files.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    save_pretrained(model, folder, data_config, tuple(class_names))
    with atomic_write(folder / "README.md") as part:
        part.write_text(card, encoding="utf-8")
    return list(FILES)
