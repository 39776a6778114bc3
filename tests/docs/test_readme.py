"""The README is short; numbers and tables of the pages are those of the CSVs, the commands and the mixers."""

import importlib
import re
import sys
from pathlib import Path

import yaml

from softmaxfree.cli.models import _rows, find_models
from softmaxfree.mixers import list_mixers, mixer_class
from softmaxfree.mixers.mixer import own_arguments

_SECTIONS = ("run", "model", "data", "trainer")
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "docs"))  # as `python docs/fill.py` has it
tables, fill = (importlib.import_module(name) for name in ("tables", "fill"))


def rows(text):
    lines = (line for line in text.splitlines() if line.startswith("|") and not line.startswith("| --"))
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_tables_of_the_pages_are_those_of_the_files():
    count = 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert fill.filled(text) == text, f"{page.name}: run `make tables`"
        count += text.count("<!-- table: ")
        assert text.count("<!-- table: ") == text.count("<!-- end -->")
    assert count > 20


def test_a_reader_has_five_minutes():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert "softmaxfree train classification --data.root photos/" in lines[:25]


def test_scores_are_those_of_the_csvs():
    assert set(rows(tables.scenes())) <= set(rows(README))
    top1, *_, seconds = rows(tables.digits())[-1]
    assert ("`digits`", "classifier", "`soft_nano`", "1.24", f"{top1} % top-1", seconds, "1") in rows(README)


def test_times_are_those_of_the_csv():
    measured = {row[0]: row[1:] for row in rows(tables.defaults().split("\n\n")[0])}
    told = {row[0].replace("`", ""): row[1:] for row in rows(README)}
    named = [name for name in measured if name in told]
    assert len(named) == 4
    assert all(measured[name] == told[name] for name in named)


def test_settings_that_follow_from_the_data_are_told():
    told = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    for name in ("classification", "detection", "segmentation"):
        recipe = yaml.safe_load((ROOT / f"src/softmaxfree/recipes/{name}.yaml").read_text(encoding="utf-8"))
        keys = [f"{top}.{key}" for top, values in recipe.items() if top in _SECTIONS for key in values]
        auto = [key for key in keys if recipe[key.split(".")[0]][key.split(".")[1]] == "auto"]
        assert [key for key in auto if f"`{key}`" not in told] == []
        assert "model.num_classes" in auto


def test_the_table_of_models_is_what_the_command_prints():
    told = [row for row in rows((ROOT / "docs/models.md").read_text(encoding="utf-8")) if row[0].startswith("soft_")]
    assert {row[0] for row in told} == set(find_models())
    for name in ("soft_nano", "soft_norm_tiny"):
        assert [row for row in told if row[0] == name] == _rows(name, None)


def test_the_table_of_mixers_tells_what_they_take():
    told = {row[0].strip("`"): row[2:] for row in rows(tables.mixers())[1:]}
    assert list(told) == list_mixers()
    assert f"{len(told) - 1} other token mixers" in README
    assert f"{len(told)} token mixers" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert told["softmax"] == ("quadratic", "yes", "yes", "yes", "")
    assert told["soft"] == ("linear", "yes", "`ndim=1`, `landmark_grid=(16,)`", "yes", "`gaussian`")
    assert told["spatial_reduction"][2] == "no"
    assert told["mhla"][2:4] == ("`block_grid=(16,)`", "no")


def test_switches_are_those_of_the_mixers_that_are_named_and_off():
    table = (ROOT / "docs/mixers.md").read_text(encoding="utf-8").split("| switch |")[1].split("\n\n")[0]
    switches = [(row[0].strip("`"), re.findall(r"`(\w+)`", row[2])) for row in rows(table) if row[0].startswith("`")]
    assert len(switches) > 10
    off = (False, 0, None, (), "none", "raster", "formula")
    for switch, named in switches:
        having = {name: own for name in list_mixers() if (own := own_arguments(mixer_class(name)).get(switch))}
        assert list(having) == named
        assert all(own.default in off for own in having.values())
