"""Files that are not the authors' are refused, and leave nothing."""

import io

import pytest
import timm
import torch

from tests.models.downloads.authors import file_of, id_of, left, refusal


class Code:
    def __reduce__(self):
        return print, ("ran",)


def broken(name):
    """Files that are not what they should be."""
    stream = io.BytesIO()
    weights = file_of("soft_tiny")[1]
    if name == "code":
        torch.save({"state_dict": weights, "x": Code()}, stream)
    elif name == "missing":
        del weights["block3.0.att.norm2.weight"]
        torch.save({"state_dict": weights}, stream)
    elif name == "half of a pair":
        del weights["block4.1.attn.kv.bias"]
        torch.save({"state_dict": weights}, stream)
    elif name == "left over":
        torch.save({"state_dict": weights | {"block3.9.att.norm1.weight": torch.zeros(320)}}, stream)
    elif name == "no tensor":
        torch.save({"state_dict": weights | {"head.bias": "none"}}, stream)
    elif name == "another":
        torch.save({"state_dict": timm.create_model("resnet10t").state_dict()}, stream)
    elif name == "noise":
        stream.write(bytes(range(256)) * 100)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("code", "would have to run to read it"),
        ("missing", "1 weights missing ['stages.2.blocks.0.norm2.weight']"),
        ("half of a pair", "'block4.1.attn.kv.bias' is missing"),
        ("left over", "the checkpoint is of another model: it has embed_dims"),
        ("no tensor", "has no weights under the authors' names"),
        ("another", "has no weights under the authors' names"),
        ("noise", "the downloaded file is no file of weights"),
        ("empty", "the downloaded file cannot be read as weights"),
    ],
)
def test_a_file_that_is_not_the_authors_is_refused_and_leaves_nothing(content, why, server, cache, capsys):
    server.content[id_of("soft_tiny")] = broken(content)
    server.behave = lambda handler, file, data: handler.file(data)
    assert why in refusal("soft_tiny", num_classes=3)
    assert left(cache) == []
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("head.weight", (7, 512)),
        ("patch_embed1.proj.0.weight", (32, 1, 3, 3)),
        ("pos_embed1", (1, 96 * 96, 64)),
        ("pos_embed2", (1, 14 * 14, 128)),
        ("block3.0.att.ff1.weight", (1280, 321)),
    ],
)
def test_every_shape_counts(key, shape, server, cache):
    server.content[id_of("soft_tiny")] = file_of("soft_tiny", **{key: torch.zeros(shape)})[0]
    refusal("soft_tiny", num_classes=3)
    assert left(cache) == []
