"""The authors' files with random weights, and what a refused model says."""

import io

import pytest
import timm

from softmaxfree.errors import InputError
from tests import golden_files

PUBLISHED = ["soft_tiny", "soft_norm_tiny", "soft_norm_small", "soft_norm_medium", "soft_norm_large"]


def url_of(name):
    return timm.get_pretrained_cfg(name).url


def id_of(name):
    return url_of(name).partition("id=")[2]


def file_of(name, **change):
    """The authors' file with random weights, and the weights."""
    stream = io.BytesIO()
    weights = golden_files.release(stream, name, **change)
    return stream.getvalue(), weights


def left(cache):
    """What is in the cache, apart from locks, which are empty files."""
    paths = [path for path in cache.rglob("*") if not (path.suffix == ".lock" and path.stat().st_size == 0)]
    return sorted(str(path.relative_to(cache)) for path in paths)


def refusal(name, **arguments):
    with pytest.raises(InputError) as caught:
        timm.create_model(name, pretrained=True, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message
