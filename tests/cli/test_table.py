"""Tables: a row is a line, and none is without a value."""

import math
import os
import sys

import pytest
import timm
from PIL import Image

from softmaxfree.cli.table import markdown_table, plain_table, print_table, summary_rows, write_results
from softmaxfree_cli import main
from tests.tasks.test_detection import task


def test_a_row_is_a_line_whatever_a_name_holds(capsys):
    columns, rows = ("class", "F1 (%)"), [["a\nb", "1.00"], ["c\r\x1b[31m\u2028", "2.00"], ["größe 日本", "3.00"]]
    for text, lines in ((plain_table(columns, rows), 4), (markdown_table(columns, rows), 5)):
        assert len(text.splitlines()) == lines
        assert r"a\nb" in text
        assert r"c\r\x1b[31m\u2028" in text
        assert "größe 日本" in text
    print_table(columns, rows)
    assert capsys.readouterr().out == plain_table(columns, rows) + "\n"


def test_what_has_no_value_is_left_out():
    metrics = dict.fromkeys(task().summary, math.nan) | {"val/map50": 0.5}
    assert summary_rows(task(), metrics) == [("box AP (%)", "nan"), ("box AP50 (%)", "50.00")]


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_results_are_written_whatever_bytes_a_name_has(format, tmp_path):
    rows, out = [{"file": "photo\udce9.h5"}], tmp_path / "out"
    write_results(rows, format, out, lambda r: (["file"], [[r[0]["file"]]]), lambda r: f"file\n{r[0]['file']}\n")
    text = out.read_bytes()
    assert {"json": rb"photo\udce9.h5", "csv": b"photo\xe9.h5", "table": b"file\n"}[format] in text


@pytest.mark.parametrize(("format", "expected"), [("json", rb"photo\udce9.png"), ("csv", b"photo\xe9.png")])
def test_names_of_any_bytes_on_the_screen(format, expected, tmp_path):
    name = os.fsdecode(tmp_path) + "/photo\udce9.png"
    Image.new("L", (28, 28)).save(name)
    model = timm.create_model("soft_nano", num_classes=2, embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    told = tmp_path / "told"
    with told.open("w", encoding="utf-8") as screen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        assert main(["predict", name, "--checkpoint", str(tmp_path / "saved"), "--format", format]) == 0
    assert expected in told.read_bytes()
