"""The authors' ImageNet weights: fetched from Google Drive once, checked, converted, and kept in timm's cache."""

import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softmaxfree.errors import InputError, NoWeightsError
from softmaxfree.models.conversion import arguments_for, convert
from softmaxfree.models.record import NAME
from softmaxfree.models.released import from_released, is_released, require_fit
from softmaxfree.tensors import read_tensors

__all__ = ["cached", "fetch"]

_CONNECT, _READ = 10.0, 60.0  # seconds until a server answers, and between bytes
_PATIENCE = 180.0  # seconds until the first byte of the file, however many pages come before it
_RETRIES = 2
_logger = logging.getLogger(__name__)


def cached(variant: str, cache_dir: str | Path | None = None) -> Path:
    """Return where the weights of a model are kept, whether they are there or not.

    Args:
        variant: name of the model.
        cache_dir: in place of timm's cache, `$TORCH_HOME/hub/checkpoints`.

    Returns:
        A `.safetensors` in a folder of our own.
    """
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir(), "checkpoints")
    return folder / "softmaxfree" / f"{variant}.safetensors"


def fetch(variant: str, url: str, cache_dir: str | Path | None = None) -> Path:
    """Return the file with the weights of a model, which is downloaded if it is not there.

    Of several processes one downloads, and the others wait. Beside the weights `VARIANT.json` tells the URL, size and
    SHA-256 of what was downloaded; the authors published none to compare it with.

    Args:
        variant: name of the model.
        url: of the authors' file, on Google Drive.
        cache_dir: in place of timm's cache, `$TORCH_HOME/hub/checkpoints`.

    Returns:
        A `.safetensors` as `softmaxfree convert` writes it.

    Raises:
        InputError: it cannot be had, or is damaged; the message says why and what to do. Nothing is left of what was
            downloaded.
    """
    file = cached(variant, cache_dir)
    if file.is_file():
        _require_whole(file, variant)
        return file
    try:
        with _alone(file) as scratch:
            if not file.is_file():  # another process may have brought it
                _bring(variant, url, scratch, file)
    except InputError as error:
        why = f"no weights of {variant}: {error}"
        raise NoWeightsError(
            f"pretrained=True: {why}. To go on, get {url} with a browser, then run "
            f"`softmaxfree convert FILE {shlex.quote(str(file))} --model {variant}`, after which pretrained=True needs "
            "no network; or pass checkpoint_path='FILE'",
            why,
            url,
        ) from error
    except OSError as error:
        why = f"the weights of {variant} cannot be kept in {file.parent} ({error.strerror or error})"
        raise NoWeightsError(
            f"pretrained=True: {why}: set TORCH_HOME, or pass cache_dir=, for a folder with space that can be written",
            f"{why}: set TORCH_HOME for a folder with space that can be written",
            url,
        ) from error
    return file


def _require_whole(file: Path, variant: str) -> None:
    """Raises InputError where a file of the cache is damaged or of another model."""
    try:
        with safe_open(str(file), framework="pt") as content:
            told = (content.metadata() or {}).get("architecture")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or cannot be read ({error}): delete it") from error
    if told != variant:
        raise InputError(f"{file} should have the weights of {variant}, but is of {told}: delete it")


@contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Yields a folder in the cache that no other process uses, and removes it at the end."""
    from filelock import FileLock  # of torch

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.stem}.lock")):
        # the lock may hold on this machine alone, where the cache is on a network
        scratch = file.with_name(f".{file.stem}.{platform.node()}")
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _bring(variant: str, url: str, scratch: Path, file: Path) -> None:
    """Downloads, checks and converts; the weights come last, so that they are never without their notes."""
    raw, kept, notes = scratch / "download.pth", scratch / file.name, scratch / "notes.json"
    _logger.info("Downloading the weights of %s from %s", variant, url)
    _download(url, raw)
    with raw.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    notes.write_text(json.dumps({"url": url, "bytes": raw.stat().st_size, "sha256": digest}, indent=2) + "\n")
    weights = _checked(raw)
    arguments = {key: value for key, value in arguments_for(variant, weights).items() if key == "depths"}
    with torch.device("meta"):
        model: Any = timm.create_model(variant, **arguments)
    require_fit({**from_released(weights), NAME: model.record}, model)  # before a table is resampled
    convert(weights, variant, arguments, kept)
    os.replace(notes, file.with_suffix(".json"))
    os.replace(kept, file)


def _download(url: str, target: Path) -> None:
    try:
        from gdown import DownloadCancelled, download
        from requests import RequestException
    except ImportError as error:
        raise InputError(
            "the authors' files are on Google Drive, which needs gdown 6.4 or newer: pip install 'softmaxfree[weights]'"
        ) from error
    stop = threading.Event()
    waiting = threading.Timer(_PATIENCE, stop.set)
    waiting.daemon = True
    waiting.start()
    try:
        download(
            url,
            str(target),
            quiet=not sys.stderr.isatty(),
            use_cookies=False,  # which would be kept in the home folder
            progress=lambda *_: waiting.cancel(),
            timeout=(_CONNECT, _READ),
            retries=_RETRIES,
            cancel=stop,
        )
    except DownloadCancelled as error:
        raise InputError(f"Google Drive sent no file within {_PATIENCE:.0f} s") from error
    except Exception as error:  # whatever its parser makes of a page that it does not know
        if isinstance(error, OSError) and not isinstance(error, RequestException):
            raise  # of the disk
        raise InputError(f"the download failed ({_reason(error)})") from error
    finally:
        waiting.cancel()


def _reason(error: Exception) -> str:
    """What gdown says, in one line, without its own advice and the inner names of urllib3."""
    line = " ".join(str(error).split()) or type(error).__name__
    if unreachable := re.search(r'Failed to (resolve|establish)[^"]*', line):
        return unreachable[0]
    line = line.removeprefix("Failed to retrieve file url: ")
    return re.split(r" You may still| The received bytes| Check FAQ|; the partial file is", line)[0][:300]


def _checked(raw: Path) -> dict[str, Tensor]:
    with raw.open("rb") as stream:
        if stream.read(512).lstrip()[:1] == b"<":
            raise InputError("Google Drive sent a page in place of the file")
    try:
        weights = read_tensors(raw)
    except InputError as error:
        raise InputError(str(error).replace(str(raw), "the downloaded file")) from error
    if not is_released(weights) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError("the downloaded file has no weights under the authors' names")
    return weights
