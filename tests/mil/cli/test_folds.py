"""`softmaxfree train --folds`: a run a fold, and one table."""

import json
import re
from collections import Counter
from itertools import zip_longest

import numpy as np
import pytest

from softmaxfree.cli import explain, predict, train
from softmaxfree.cli.folds import _tell
from softmaxfree.errors import InputError
from softmaxfree.report import compare
from tests.mil.cli.quick_run import overrides
from tests.mil.data.slide_files import features_of, read_csv, write_csv, write_slides


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Sixteen slides of eight cases; only read."""
    return write_slides(tmp_path_factory.mktemp("slides"), count=16, cases=8)


def test_folds_are_trained_once_each_and_go_on(slides, tmp_path, capsys):
    out = tmp_path / "runs"
    place = train.run("bags", overrides(slides, trainer__max_epochs=1), out=str(out), folds=2)
    assert place == out / "folds-0"
    rows = read_csv(place / "folds.csv")
    assert [row["fold"] for row in rows] == ["0", "1", "mean", "sd"]
    scores = [float(row["test/auc"]) for row in rows[:2]]
    assert float(rows[2]["test/auc"]) == pytest.approx(np.mean(scores))
    assert float(rows[3]["test/auc"]) == pytest.approx(np.std(scores, ddof=1))
    tested = [{r["file"] for r in read_csv(place / str(k) / "split.csv") if r["split"] == "test"} for k in (0, 1)]
    assert tested[0] | tested[1] == {f"{i + 1:03}" for i in range(16)}
    assert not tested[0] & tested[1]
    held_out = read_csv(place / "predictions.csv")
    assert sorted(row["slide_id"] for row in held_out) == [f"{i + 1:03}" for i in range(16)]
    assert all(row["slide_id"] in tested[int(row["fold"])] for row in held_out)
    assert all(row["case_id"] == f"case{(int(row['slide_id']) - 1) % 8}" for row in held_out)
    before = (place / "0" / "best.ckpt").stat().st_mtime_ns
    (place / "1" / "summary.json").unlink()  # as if it had been interrupted
    train.run("bags", overrides(slides, trainer__max_epochs=1), out=str(out), folds=2, resume="last")
    assert (place / "0" / "best.ckpt").stat().st_mtime_ns == before
    assert read_csv(place / "folds.csv") == rows
    assert "fold 0 of 2 is finished" in capsys.readouterr().out
    assert read_csv(place / "predictions.csv") == held_out
    assert compare([place]) == place / "report.html"
    page = compare([place / "0", place / "1"], tmp_path / "both.html")
    assert page.read_bytes() == (place / "report.html").read_bytes()
    text = re.sub(r"<(pre|style|svg).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert "on its own validation slides, scores named test on its test slides" in text
    assert "Mean and standard deviation are over the runs, which differ in data.fold; a run" in text
    assert "bold" not in text  # the slides of each fold are others
    assert "<td><b>" not in text
    (line,) = re.findall(r"<tr><td>test macro AUC</td>(.*)</tr>", text)
    cells = re.findall(r"<td>(?:<b>)?([\d.]+)", line)
    values = [f"{float(row['test/auc']):.4f}" for row in rows]
    assert cells == [*values[2:], "2", *values[:2]]
    summary = json.loads((place / "0" / "summary.json").read_text())
    own = [row for row in held_out if row["fold"] == "0"]
    names = summary["data"]["class_names"]
    counted = {(names[i], names[j]): count for i, j, count in summary["tested"]["confusion"]["cells"]}
    assert counted == Counter((row["label"], row["predicted"]) for row in own)
    page = (place / "0" / "report.html").read_text(encoding="utf-8")
    assert page.count("<h3>Of the test</h3>") == 2  # scores of classes, confusion matrix
    assert "<th>slides tested</th>" in page
    assert not re.search(r"\bimages?\b", text)
    (place / "1" / "summary.json").unlink()
    text = compare([place]).read_text(encoding="utf-8")  # a run that did not finish is measured as the others
    (line,) = re.findall(r"<tr><td>macro AUC</td>(.*)</tr>", text)
    known = [json.loads((place / "0" / "summary.json").read_text())["metrics"]["val/auc"]]
    known += [max(float(row["val/auc"]) for row in read_csv(place / "1" / "metrics.csv"))]
    assert re.findall(r"<td>(?:<b>)?([01]\.\d{4})", line) == [
        f"{value:.4f}" for value in (np.mean(known), np.std(known, ddof=1), *known)
    ]
    assert "on its own validation slides" in text
    np.save(tmp_path / "bare.npy", features_of(0, 9))  # the pooling needs no coordinates, a map does
    predict.run([tmp_path / "bare.npy"], checkpoint=place / "0")
    with pytest.raises(InputError, match=r"slide bare: .*bare.npy has no coordinates, which a map needs"):
        explain.run([tmp_path / "bare.npy"], checkpoint=place / "0", out=tmp_path)
    explain.run([slides / "features" / "003.h5"], checkpoint=place / "0", out=tmp_path)
    assert "weights of the pooling: sum over 11 patches 1" in capsys.readouterr().out  # it has no class token


def test_folds_that_test_one_class_are_told(slides, tmp_path, capsys):
    labels = write_csv(tmp_path / "labels.csv", "slide_id,label", *(f"{i + 1:03},{'ab'[i % 2]}" for i in range(16)))
    (splits := tmp_path / "splits").mkdir()
    for number, (test, val) in enumerate((((1, 2), (3, 4)), ((1,), (13, 14)))):
        columns = ([i for i in range(1, 17) if i not in (*test, *val)], val, test)
        rows = (",".join("" if i is None else f"{i:03}" for i in row) for row in zip_longest(*columns))
        write_csv(splits / f"splits_{number}.csv", "train,val,test", *rows)
    given = overrides(slides, data__labels=labels, data__split=splits, trainer__max_epochs=1)
    place = train.run("bags", given, out=str(tmp_path / "runs"), folds=2)
    out = capsys.readouterr().out
    assert "mean and sd of test macro AUC are of 1 of 2 folds: the others have none" in out
    assert "predictions.csv (1 in several folds)" in out
    text = compare([place]).read_text(encoding="utf-8")
    assert re.findall("<td>test macro AUC</td><td>(?:[01][.0-9]+)</td><td>\N{EN DASH}</td><td>1</td>", text)
    text = (place / "1" / "report.html").read_text(encoding="utf-8")
    assert "1 class (b) is without slides in the test, so its scores are of the other classes alone." in text


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("bags", {"data__fold": 1}, "--folds sets data.fold and data.folds"),
        (
            "bags",
            {"data__split": "x.csv"},
            r"--folds: data.split must be a folder with a file for each fold",
        ),
        ("digits", None, "--folds is for data with the keys data.fold and data.folds, such as bags; digits has none"),
    ],
)
def test_bad_folds(slides, tmp_path, recipe, changes, message):
    given = [] if changes is None else overrides(slides, **changes)
    with pytest.raises(InputError, match=message):
        train.run(recipe, given, out=str(tmp_path), folds=2)


def test_folds_are_of_one_setting(slides, tmp_path):
    (tmp_path / "folds-old").mkdir()
    given = overrides(slides, trainer__max_epochs=1)
    place = tmp_path / "folds-0"
    place.mkdir()
    (place / "folds.json").write_text(json.dumps({"recipe": "bags", "folds": "3"}))
    with pytest.raises(InputError, match=r"--resume: the folds in .*folds-0 were begun with .* as in the recipe"):
        train.run("bags", given, out=str(tmp_path), folds=3, resume="last")
    splits = tmp_path / "splits"
    write_csv(splits / "splits_0.csv", "slide_id,split", "001,train", "002,val")
    with pytest.raises(InputError, match=r"data.split: .*splits has none of splits_1.csv"):
        train.run("bags", [*given, f"--data.split={splits}"], out=str(tmp_path / "runs"), folds=2)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_none_of_folds_is_left_alone(slides, tmp_path):
    there = tmp_path / "runs" / "0"
    (there / "0").mkdir(parents=True)
    (there / "0" / "photo.png").write_text("mine")
    with pytest.raises(InputError, match=r"^--resume: .*runs/0 is no folder of folds, which has folds.json"):
        train.run("bags", overrides(slides), out=str(tmp_path / "runs"), folds=2, resume=str(there))
    absent = [option for option in overrides(slides) if "features" not in option] + ["--data.features=absent"]
    with pytest.raises(FileNotFoundError):
        train.run("bags", absent, out=str(tmp_path / "runs"), folds=2)
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["0", "0", "photo.png"]


def test_folds_are_of_one_process_each(slides, tmp_path):
    options = [*overrides(slides), "--trainer.devices=2", "--trainer.strategy=ddp"]
    with pytest.raises(InputError, match=r"^--folds trains each fold in one process, got 2: give --trainer.devices 1"):
        train.run("bags", options, out=str(tmp_path / "runs"), folds=2)
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_a_score_that_one_fold_lacks_is_in_the_table(tmp_path, capsys):
    labels = {"test/auc": ["test macro AUC", 1, 4], "test/instance_auc": ["test AUC of patches", 1, 4]}
    for fold, metrics in enumerate(({"test/auc": 0.5}, {"test/auc": 1.0, "test/instance_auc": 0.75})):
        own = {name: label for name, label in labels.items() if name in metrics}
        (tmp_path / str(fold)).mkdir()
        (tmp_path / str(fold) / "summary.json").write_text(json.dumps({"labels": own, "metrics": metrics}))
    _tell(tmp_path, 2)
    assert "mean and sd of test AUC of patches are of 1 of 2 folds: the others have none" in capsys.readouterr().out
    rows = read_csv(tmp_path / "folds.csv")
    assert [row["test/instance_auc"] for row in rows] == ["", "0.75", "", ""]
    assert [row["test/auc"] for row in rows][:3] == ["0.5", "1.0", "0.75"]
