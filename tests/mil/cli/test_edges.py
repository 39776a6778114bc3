"""Odd names, one measured slide and unlike folds: each gives the right table, or one clear error."""

import json
import re

import h5py
import numpy as np
import pytest
from PIL import Image

from softmaxfree.cli import explain, predict, train, validate
from softmaxfree.errors import InputError
from softmaxfree.mil.data import EmbeddedBagsDataModule
from tests.mil.cli.quick_run import overrides
from tests.mil.data.slide_files import coords_of, features_of, read_csv, write_csv, write_slides, write_trident


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Eight slides; only read."""
    return write_slides(tmp_path_factory.mktemp("slides"), count=8)


@pytest.fixture(scope="module")
def run_dir(slides, tmp_path_factory):
    """A run of classes whose names no name of a file can have; only read."""
    folder = tmp_path_factory.mktemp("run")
    rows = (f"{i + 1:03},{'<3' if i % 2 else '>3'}" for i in range(8))
    table = write_csv(folder / "labels.csv", "slide_id,label", *rows)
    return train.run("bags", overrides(slides, data__labels=table, trainer__max_epochs=1), out=str(folder / "runs"))


def test_classes_whose_names_look_alike_have_files_of_their_own(run_dir, slides, tmp_path):
    for target in ("<3", ">3"):
        given = {"checkpoint": run_dir, "what": "contributions", "out": tmp_path}
        explain.run([slides / "features" / "003.h5"], target=target, **given)
    found = [json.loads(path.read_text())["class"] for path in tmp_path.glob("*.json")]
    assert sorted(found) == ["<3", ">3"]


def test_names_that_are_no_formula(run_dir, tmp_path):
    for name in ("a$_$b", "p$x$q"):
        write_trident(tmp_path / "features" / f"{name}.h5", features_of(0, 9))
    explain.run([tmp_path / "features"], checkpoint=run_dir, out=tmp_path / "maps")
    assert [row["slide_id"] for row in read_csv(tmp_path / "maps" / "slides.csv")] == ["a$_$b", "p$x$q"]
    for name in ("a$_$b", "p$x$q"):
        with Image.open(tmp_path / "maps" / f"{name}_attention.png") as picture:
            assert len(np.unique(np.asarray(picture))) > 10


def test_a_name_too_long_for_its_maps_is_left_out(run_dir, tmp_path, capsys):
    for name in ("ok", "n" * 240):
        write_trident(tmp_path / "features" / f"{name}.h5", features_of(0, 9))
    explain.run([tmp_path / "features"], checkpoint=run_dir, out=tmp_path / "maps")
    assert "1 of 2 slides skipped" in capsys.readouterr().err
    assert [row["slide_id"] for row in read_csv(tmp_path / "maps" / "slides.csv")] == ["ok"]


def test_maps_do_not_lie_among_the_slides(run_dir, slides):
    with pytest.raises(InputError, match=r"--out: .*features is a folder of slides"):
        explain.run([slides / "features"], checkpoint=run_dir, out=slides / "features")


def test_places_of_the_top_patches_are_whole(run_dir, tmp_path):
    write_trident(
        tmp_path / "s.h5", features_of(0, 9), coords_of(9) + 1_234_567, level0_width=2_000_000, level0_height=2_000_000
    )
    explain.run([tmp_path / "s.h5"], checkpoint=run_dir, out=tmp_path / "maps")
    with h5py.File(tmp_path / "maps" / "s_attention.h5") as file:
        places = file["coords"][:]
    for row in read_csv(tmp_path / "maps" / "s_attention_top.csv"):
        assert [float(row["x"]), float(row["y"])] == places[int(row["patch"])].tolist()


def test_one_measured_slide_is_measured(slides, tmp_path):
    rows = [f"{i + 1:03},{'test' if i == 7 else 'val' if i in (2, 3) else 'train'}" for i in range(8)]
    split = write_csv(tmp_path / "split.csv", "slide_id,split", *rows)
    given = overrides(slides, data__split=split, trainer__max_epochs=1)
    run = train.run("bags", given, out=str(tmp_path / "runs"))
    kept = read_csv(run / "predictions.csv")
    assert [(row["split"], row["slide_id"]) for row in kept] == [("val", "003"), ("val", "004"), ("test", "008")]
    assert [row["patches"] for row in kept] == ["11", "12", "16"]
    assert validate.run(str(run))["test/balanced_accuracy"] in (0.0, 1.0)
    none = train.run("bags", [*given, "--trainer.limit_test_batches=0"], out=str(tmp_path / "runs"))
    assert {row["split"] for row in read_csv(none / "predictions.csv")} == {"val"}


def test_survival_keeps_the_times_of_the_table(slides, tmp_path):
    times = [f"{1_234_567.1 + i / 7:.7f}" for i in range(8)]  # apart by less than float32 can tell
    rows = (f"{i + 1:03},{time},{int(i != 3)}" for i, time in enumerate(times))
    table = write_csv(tmp_path / "t.csv", "slide_id,time,event", *rows)
    sides = (f"{i + 1:03},{'train' if i < 4 else 'val'}" for i in range(8))
    split = write_csv(tmp_path / "split.csv", "slide_id,split", *sides)
    given = overrides(slides, data__labels=table, data__bins=2, data__split=split, trainer__max_epochs=1)
    run = train.run("bags_survival", given, out=str(tmp_path / "runs"))
    kept = read_csv(run / "predictions.csv")
    assert [float(row["time"]) for row in kept] == [float(time) for time in times[4:]]
    risks = [float(row["risk"]) for row in kept]
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    right = sum(risks[i] > risks[j] for i, j in pairs) + sum(0.5 * (risks[i] == risks[j]) for i, j in pairs)
    assert validate.run(str(run))["val/c_index"] == pytest.approx(right / len(pairs), abs=1e-6)
    explain.run([slides / "features"], checkpoint=run, out=tmp_path / "maps")
    predict.run([slides / "features"], checkpoint=run, format="csv", out=tmp_path / "p.csv")
    assert (tmp_path / "maps" / "slides.csv").read_text() == (tmp_path / "p.csv").read_text()


def test_folds_with_and_without_a_test_are_not_mixed(slides, tmp_path):
    for fold, last in enumerate(("test", "val")):
        rows = (f"{i + 1:03},{last if i == 7 else 'val' if i in (2, 3) else 'train'}" for i in range(8))
        write_csv(tmp_path / f"splits_{fold}.csv", "slide_id,split", *rows)
    with pytest.raises(InputError, match=r"--folds: .*splits_0.csv has slides to test and .*splits_1.csv has none"):
        train.run("bags", overrides(slides, data__split=tmp_path), out=str(tmp_path / "runs"), folds=2)


def test_folds_are_of_whole_runs(slides, tmp_path):
    given = overrides(slides, trainer__fast_dev_run="true", data__batch_size=2)
    with pytest.raises(InputError, match=r"fold 0 left no scores in .* without trainer.fast_dev_run"):
        train.run("bags", given, out=str(tmp_path / "runs"), folds=2)


def test_digit_bags_have_their_number_of_digits(tmp_path):
    few = [f"--data.{split}_bags={count}" for split, count in (("train", 4), ("val", 6), ("test", 4))]
    quick = ["--trainer.max_epochs=1", "--model.name=mean", "--trainer.accelerator=cpu"]
    run = train.run("mnist_bags", [*few, *quick], out=str(tmp_path))
    data = EmbeddedBagsDataModule(train_bags=4, val_bags=6, test_bags=4)
    data.setup("fit")
    wanted = [len(data.bags["val"][i].features) for i in range(6)]
    rows = [row for row in read_csv(run / "predictions.csv") if row["split"] == "val"]
    assert [int(row["patches"]) for row in rows] == wanted
    assert len(set(wanted)) > 1
    text = re.sub(r"<(pre|style|svg).*?</\1>", "", (run / "report.html").read_text(encoding="utf-8"), flags=re.S)
    assert "scores named test on the test bags" in text
