"""A folder of a comparison after something has changed: images, the study's mixer, code, or a table by hand."""

import csv

import pytest

from softmaxfree.cli import compare as command
from softmaxfree.compare.run import read_table
from softmaxfree.compare.summary import accuracies, told_apart
from softmaxfree_cli import main
from softmaxfree_cli.stops import Stop


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate("abab"):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name / f"{i}.png").write_text(str(i))  # listed, and not read before a training
    return tmp_path / "photos"


def compare(out, *arguments):
    return main(["compare", "--mixers", "softmax", "--tokens", "4", "--out", str(out), *map(str, arguments)])


def test_trainings_on_other_images_are_not_averaged(fake, photos, tmp_path, capsys):
    out = tmp_path / "c"
    assert compare(out, "--data", photos, "--seeds", 2) == 0
    assert compare(out, "--data", photos, "--seeds", 2) == 0
    assert len(fake.commands) == 2
    (photos / "a" / "another.png").write_text("another")
    assert compare(out, "--data", photos, "--seeds", 1) == 0
    assert len(fake.commands) == 3
    folders = {command[command.index("--out") + 1] for command in fake.commands}
    assert len(folders) == 3  # nothing of the old runs is gone, and none is taken for a new one
    rows = read_table(out, "accuracy")
    assert [row["seed"] for row in rows] == ["43", "42"]
    assert len({row["images"] for row in rows}) == 2
    assert {row["name"] for row in accuracies(told_apart(rows))} == {
        f"softmax (images {row['images']})" for row in rows
    }
    assert rows[0]["images"] in (out / "report.html").read_text()
    assert compare(out, "--data", photos, "--seeds", 2) == 0  # the other seed is trained again, too
    assert [row["name"] for row in accuracies(told_apart(read_table(out, "accuracy")))] == ["softmax"]


def test_versions_of_a_mixer_have_names_of_their_own():
    rows = [{"name": "power", "code": code, "what": "forward"} for code in ("1a", "1a", "2b")]
    assert [row["name"] for row in told_apart(rows)] == ["power (code 1a)", "power (code 1a)", "power (code 2b)"]
    assert told_apart(rows[:2]) == rows[:2]


def test_a_study_is_of_one_mixer(tmp_path, capsys):
    out = tmp_path / "c"
    study = ["compare", "--study", "normalize", "--tokens", "64", "--out", str(out)]
    assert main(study) == 0
    assert "Study of normalize: 2 ways of soft, compared" in (out / "report.html").read_text()
    landmarks = ["compare", "--study", "landmarks", "--budget-minutes", "1e-9", "--out", str(tmp_path / "l")]
    assert main(landmarks) == 0
    assert main([*landmarks, "--mixers", "nystrom"]) == 2
    assert "with mixers 'soft', this one has 'nystrom'" in capsys.readouterr().err


def test_a_pass_that_is_missing_is_measured_again(tmp_path):
    assert compare(tmp_path) == 0
    path = tmp_path / "cost.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",forward," not in line))
    assert compare(tmp_path) == 0
    assert [row["what"] for row in read_table(tmp_path, "cost")] == ["forward", "forward+backward"]


def test_a_table_that_a_spreadsheet_has_saved(tmp_path, capsys):
    assert compare(tmp_path) == 0
    path = tmp_path / "facts.csv"
    before, text = read_table(tmp_path, "facts"), path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert read_table(tmp_path, "facts") == before
    rows = list(csv.reader(text.splitlines()))
    path.write_text("\n".join(";".join(row) for row in rows))
    assert compare(tmp_path) == 2
    assert "facts.csv has no columns name and device between commas" in capsys.readouterr().err
    path.write_text(text + "softmax,1\n")
    assert compare(tmp_path) == 2
    assert "line 3 of" in capsys.readouterr().err
    path.write_text(text)
    cost = (tmp_path / "cost.csv").read_text()
    value = read_table(tmp_path, "cost")[0]["milliseconds"]
    (tmp_path / "cost.csv").write_text(cost.replace(value, "fast", 1))
    assert compare(tmp_path) == 2
    assert "milliseconds in line 2 of" in capsys.readouterr().err
    (tmp_path / "cost.csv").write_text(cost)
    (tmp_path / "settings.json").write_text('{"study"')
    assert compare(tmp_path) == 2
    assert "settings.json is no JSON" in capsys.readouterr().err


def test_who_interrupts_is_told_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_):
        raise Stop(2)

    monkeypatch.setattr(command, "compare", interrupted)
    with pytest.raises(Stop) as caught:
        command.run(mixers=["softmax"], out=str(tmp_path / "c"))
    assert caught.value.__notes__ == ["the same command goes on"]
