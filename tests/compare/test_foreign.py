"""Mixers of another package in a comparison: weights of their own, mistakes, and files that change."""

import importlib
import sys

import pytest

from softmaxfree.compare.run import read_table
from softmaxfree.compare.studies import variants
from softmaxfree.mixers import registry
from softmaxfree_cli import main

_MIXER = '''
import torch
from softmaxfree.mixers import AbstractAttention, register
from softmaxfree.mixers.features import linear_attention

@register
class Foreign(AbstractAttention):
    """Linear attention with a scale that is learned."""
    name = "foreign"

    def __init__(self, dim, num_heads, **common):
        super().__init__(dim, num_heads, **common)
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def mix(self, q, k, v, grid, mask=None):
        out = linear_attention((q * self.temperature).relu() + 0.1, k.relu() + 0.1, v, mask, least=1e-6)
        return {out}
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the mixer's file, and imports it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))

    def put(out: str) -> None:
        (tmp_path / "foreign_mixer.py").write_text(_MIXER.replace("{out}", out))
        sys.modules.pop("foreign_mixer", None)
        importlib.invalidate_caches()
        importlib.import_module("foreign_mixer")

    yield put
    sys.modules.pop("foreign_mixer", None)


def compare(out):
    assert main(["compare", "--mixers", "foreign", "mala", "--tokens", "64", "--out", str(out)]) == 0
    return {name: {row["name"]: row for row in read_table(out, name)} for name in ("facts", "cost")}


def test_a_mistake_is_told_and_tried_again_when_it_is_mended(write, tmp_path, capsys):
    out = tmp_path / "out"
    for wrong, told in (
        ("out[..., 1:]", "mix of foreign must return (B, H, N, E), (1, 2, 768, 32), and returned (1, 2, 768, 31)"),
        ("out.missing", "AttributeError: 'Tensor' object has no attribute 'missing'"),
        ("{}['key']", "KeyError: 'key'"),
    ):
        write(wrong)
        tables = compare(out)
        assert tables["facts"]["foreign"]["not_measured"] == told
        assert tables["cost"]["foreign"]["not_measured"].startswith(told[:30])
        assert not tables["cost"]["foreign"].get("milliseconds")
    mala = tables["cost"]["mala"]
    write("out")
    capsys.readouterr()
    tables = compare(out)
    assert "tried again, as not measured before, or with other code or images: 2 of 2 trials" in capsys.readouterr().out
    assert tables["facts"]["foreign"]["not_measured"] == ""
    assert float(tables["facts"]["foreign"]["padding_error"]) < 1e-5
    assert int(tables["facts"]["foreign"]["parameters"]) > int(tables["facts"]["mala"]["parameters"]) - 1e6
    assert tables["cost"]["mala"] == mala  # was not measured again
    assert len(read_table(out, "cost")) == 4


def test_what_was_measured_of_other_code_is_measured_again(write, tmp_path, capsys):
    write("out")
    first = variants(["foreign"])[0].code
    before = compare(tmp_path / "out")["facts"]["foreign"]
    write("out * 2")
    own, mala = variants(["foreign", "mala"])
    assert len({own.code, first, ""}) == 3
    assert mala.code == ""
    after = compare(tmp_path / "out")["facts"]["foreign"]
    assert (before["code"], after["code"]) == (first, own.code)
    capsys.readouterr()
    compare(tmp_path / "out")
    assert "foreign" not in capsys.readouterr().out  # nothing is left to do


def test_an_error_of_a_plug_in_is_not_called_one_of_ours(write, tmp_path, monkeypatch):
    info = tmp_path / "foreign_mixer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-mixer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[softmaxfree.plugins]\nforeign = foreign_mixer\n")
    write("out.missing")
    arguments = ["digits", "--model.name", "soft_nano", "--model.model_args.mixer", "foreign"]
    limits = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.logger", "false"]
    with pytest.raises(AttributeError) as raised:
        main(["train", *arguments, *limits, "--out", str(tmp_path / "runs")])
    path = tmp_path / "foreign_mixer.py"
    assert raised.value.__notes__[-1:] == [f"softmaxfree train: the plug-in 'foreign_mixer' failed, {path}, line 17"]
