import json
import re

import numpy as np
import pytest
from PIL import Image

from softmaxfree.cli import train
from softmaxfree.report import compare, note_part
from softmaxfree.report.findings import confusion_counts, findings
from softmaxfree.report.summary import data_name, shown_labels, write_summary
from tests.cli.quick_run import overrides, read_csv

CODE = "<script>alert(1)</script>"
ODD_NAMES = [CODE, "$\\frac{", "数字", "_under", '"quoted"', "&amp;", "a\nb", " ", "ü", "x" * 300]


def text(page):
    return page.read_text(encoding="utf-8")


def test_a_run_leaves_a_page_that_stands_alone(finished):
    page = text(finished / "report.html")
    assert not re.findall(r"https?://", page)
    assert "<script" not in page
    for place in re.findall(r'(?:src|href)="([^"]*)', page):
        assert place.startswith(("data:", "#"))
    assert "default-src 'none'" in page


def test_the_numbers_are_those_of_the_run(finished):
    summary = json.loads(text(finished / "summary.json"))
    rows = read_csv(finished / "metrics.csv")
    best = max(rows, key=lambda row: float(row["val/top1"]))
    assert summary["best_epoch"] == int(best["epoch"]) + 1
    for name, value in summary["metrics"].items():
        assert value == pytest.approx(float(best[name]), rel=1e-6)
    assert [row["train/loss"] for row in summary["epochs"]] == [float(row["train/loss"]) for row in rows]
    counts = confusion_counts(summary)
    assert counts.trace() / counts.sum() == pytest.approx(summary["metrics"]["val/top1"])
    assert f"{100 * summary['metrics']['val/top1']:.2f}\N{NO-BREAK SPACE}%" in text(finished / "report.html")


def test_the_mistakes_are_the_most_certain_ones(finished):
    mistakes = json.loads(text(finished / "summary.json"))["mistakes"]
    assert mistakes["looked_at"] == mistakes["of"] == 1000
    assert 0 < len(mistakes["items"]) <= 12 <= mistakes["wrong"]
    probabilities = [item["probability"] for item in mistakes["items"]]
    assert probabilities == sorted(probabilities, reverse=True)
    for item in mistakes["items"]:
        assert item["true"] != item["predicted"]
        assert item["true_probability"] <= item["probability"]
        with Image.open(finished / item["pictures"]["image"]) as picture:
            assert picture.size == (28, 28)


def test_the_page_can_be_made_again(run_dir, finished):
    page = compare([run_dir])
    assert page == run_dir / "report.html"
    again = text(page).replace(str(run_dir), str(finished))
    assert again == text(finished / "report.html")


def test_names_that_are_code(change):
    def rename(summary):
        summary["data"]["class_names"] = ODD_NAMES
        summary["data"]["found"] = summary["model"]["loaded"] = summary["command"] = CODE

    page = text(compare([change(rename)]))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "数字" in page


@pytest.mark.parametrize("classes", [2, 1000])
def test_any_number_of_classes(change, classes):
    rng = np.random.default_rng(0)

    def replace(summary):
        summary["data"] |= {
            "class_names": [f"class {i}" for i in range(classes)],
            "class_counts": [7] * classes,
        }
        counts = rng.integers(0, 2, (classes, classes)) + 5 * np.eye(classes, dtype=int)
        cells = [[int(i), int(j), int(counts[i, j])] for i, j in np.argwhere(counts)]
        summary["confusion"] |= {"classes": classes, "cells": cells}
        summary["class_scores"] = {"recall": (np.arange(classes) / classes).tolist()}
        summary["mistakes"]["items"] = []

    page = text(compare([change(replace)]))
    for i in range(classes):
        assert f"<td>class {i}</td>" in page
    assert ("The other 970 classes" in page) == (classes == 1000)
    assert len(page) < 2e6


def test_a_run_without_validation_says_so(tmp_path):
    run = train.run("digits", overrides(trainer__limit_val_batches=0, trainer__max_epochs=1), out=str(tmp_path))
    page = text(run / "report.html")
    assert "There was no validation" in page
    assert "Worst mistakes" not in page
    assert not (run / "confusion_matrix.png").exists()
    assert json.loads(text(run / "summary.json"))["best_epoch"] is None


def told(summary, counts, **data):
    cells = [[i, j, count] for i, row in enumerate(counts) for j, count in enumerate(row) if count]
    names = ["good", "bad", "ugly"]
    total = sum(map(sum, counts))
    return findings(
        summary
        | {
            "confusion": {"of": "images", "images": total, "classes": 3, "cells": cells},
            "data": summary["data"] | {"class_names": names, "num_images": {"val": total}} | data,
            "class_scores": {"recall": [row[i] / sum(row) if sum(row) else None for i, row in enumerate(counts)]},
            "metrics": {"val/top1": sum(counts[i][i] for i in range(3)) / total},
        }
    )


def test_what_is_worth_knowing(finished):
    summary = json.loads(text(finished / "summary.json"))
    collapsed = told(summary, [[600, 0, 0], [200, 0, 0], [200, 0, 0]])
    assert collapsed[0].startswith("The model gives one class, good, to every image of the validation")
    assert len(collapsed) == 1
    guessing = told(summary, [[500, 100, 0], [200, 0, 0], [200, 0, 0]])
    assert guessing[0].startswith("Top-1 is 50.0 %. To answer good always")
    assert "gives 60.0 %" in guessing[0]
    assert guessing[1] == "1 class (ugly) is never predicted in the validation."
    assert told(summary, [[300, 0, 0], [0, 300, 0], [0, 0, 300]]) == []
    assert "1 class (ugly) is without images in the validation" in told(summary, [[300, 0, 0], [0, 300, 0], [0] * 3])[0]
    small = told(summary, [[10, 0, 0], [0, 6, 0], [0, 0, 4]], num_images={"val": 22, "train": 60})
    assert small[0].startswith("20 validation images were measured: one of them is 5.0 percentage points")
    assert "one of them is 5.0 percentage points" in told(summary, [[10, 0, 0], [1, 5, 0], [0, 0, 4]])[0]
    dense = {**summary, "task": "SegmentationTask", "monitor": "val/miou", "labels": {"val/miou": ["mIoU (%)", 100, 2]}}
    dense["data"] = {**dense["data"], "num_images": {"train": 60, "val": 25}}
    assert findings(dense)[-1].startswith("The validation has 25 images, one image is 4.0 % of them: another choice of")
    dense["data"]["num_boxes"] = {"val": 50}
    dense |= {"task": "DetectionTask", "labels": {"val/miou": ["box AP (%)", 100, 2]}}
    assert (
        "has 50 boxes in 25 images, one box is 2.0 % of them: another choice of images may give a box AP that"
        in (findings(dense)[-1])
    )
    one_sided = told(summary, [[200, 0, 0], [200, 100, 0], [200, 0, 100]])
    assert one_sided[0] == "The model gives one class, good, to 75 % of the images, and 25 % are of it."
    weak = told(summary, [[300, 0, 0], [30, 270, 0], [250, 0, 50]])
    assert weak == [
        "1 class is far below the others in recall: ugly 16.7 %; half of the others have 95.0 % or more. "
        "More images of such a class, or model.class_weights auto, may help."
    ]
    weighed = summary | {"settings": {"model.class_weights": [[1.0, 2.0, 3.0], "auto: inverse square root"]}}
    assert "More images of such a class may help." in told(weighed, [[300, 0, 0], [30, 270, 0], [250, 0, 50]])[0]
    assert told(summary, [[300, 0, 0], [0, 300, 0], [150, 0, 150]]) == []
    remarked = told(summary | {"remark": "nothing is found: try more epochs"}, [[300, 0, 0], [0, 300, 0], [0, 0, 300]])
    assert remarked == ["Nothing is found: try more epochs."]
    for rise in (0.1, 0.001):  # in the last tenth of the epochs
        epochs = [{summary["monitor"]: 0.7 + rise * (i == 19)} for i in range(20)]
        last = told(summary | {"epochs": epochs, "best_epoch": 20}, [[300, 0, 0], [0, 300, 0], [0, 0, 300]])
        assert [line[:31] for line in last] == ["The best epoch is the last of 2"] * (rise > 0.005)


def test_what_the_data_has_to_tell(finished, change):
    summary = json.loads(text(finished / "summary.json"))
    data = {
        "num_images": {"train": 40, "val": 302},
        "left_out": {
            "train": {"images": 0, "first": []},
            "val": {"images": 2, "first": ["a.jpg: cut off", "b.jpg: empty"]},
        },
        "remarks": ["photos: 3 validation images are also trained on"],
        "also_trained_on": 3,
    }
    lines = told(summary, [[150, 0, 0], [0, 150, 0], [0, 0, 0]], **data)
    assert lines == [
        "2 of 302 validation images cannot be read and were left out: a.jpg: cut off; b.jpg: empty.",
        "photos: 3 validation images are also trained on.",
        "1 class (ugly) is without images that can be read in the validation, so nothing is known of it.",
    ]
    page = text(compare([change(lambda s: s["data"].update(data))]))
    assert "(3 of which the model was trained on, too: see above)" in page
    assert "trained on, too" not in text(finished / "report.html")


@pytest.mark.parametrize(
    ("task", "confusion", "counted"),
    [("ClassificationTask", True, "images"), ("SegmentationTask", True, "pixels"), ("DetectionTask", False, "boxes")],
)
def test_what_is_counted_of_a_class(change, task, confusion, counted):
    def replace(summary):
        summary["task"] = task
        if not confusion:
            summary |= {"confusion": None, "class_scores": {"box AP": [0.9] * 9 + [None]}}
        summary["mistakes"]["items"] = []

    page = text(compare([change(replace)]))
    assert f"<th>{counted} trained on</th>" in page
    assert ("1 class (9) is without objects in the validation" in page) == (task == "DetectionTask")


def test_top5_of_six_classes_is_not_shown(finished):
    labels = json.loads(text(finished / "summary.json"))["labels"]
    assert "val/top5" in labels
    assert "val/top5" not in shown_labels(labels, 5)
    assert "val/top5" not in shown_labels(labels, 6)
    assert "val/top5" in shown_labels(labels, 7)


def test_parts_of_a_resumed_run(tmp_path, finished, change):
    first = {"model.lr": (0.003, "auto: from scratch"), "data.root": ("photos", "given")}
    note_part(tmp_path, first, "softmaxfree train classification --data.root photos")
    parts = note_part(tmp_path, {"trainer.max_epochs": (9, "given")}, "softmaxfree train again", 3)
    assert parts == note_part(tmp_path, {"trainer.max_epochs": (9, "given")}, "softmaxfree train again", 3)
    assert set(parts["settings"]) == {"model.lr", "data.root", "trainer.max_epochs"}
    assert [part["resumed_from"] for part in parts["parts"]] == [None, 3]
    run = change(lambda summary: summary.update(settings={"model.lr": [1, "given"]}, command="the first"))
    parts = note_part(run, {}, "the second", 2)  # of a run that left a summary alone
    assert parts["settings"] == {"model.lr": [1, "given"]}
    page = text(compare([change(lambda summary: summary.update(resumed=parts["parts"][1:]))]))
    assert "resumed after epoch 2 with" in page
    assert page.index("the first") < page.index("the second")


def test_overfitting_is_explained_where_there_is_a_validation_loss(finished, change):
    def without_loss(summary):
        for row in summary["epochs"]:
            del row["val/loss"]

    assert "a sign of overfitting" in text(finished / "report.html")
    assert "a sign of overfitting" not in text(compare([change(without_loss)]))


def test_settings_are_written_as_in_a_recipe(change):
    settings = {"run.early_stopping": [None, "a.yaml"], "run.keep_memory": [True, "a.yaml"], "data.root": ["a", "b"]}
    page = text(compare([change(lambda summary: summary.update(settings=settings))]))
    for value in ("null", "true", "a"):
        assert f'<td class="left">{value}</td>' in page


def test_data_has_its_own_name():
    assert data_name({"data": {"root": "a/photos/"}}) == "photos"
    assert (
        data_name({"data": {"root": None, "train_json": "a/boxes.json"}, "datamodule": "x.CocoDataModule"}) == "boxes"
    )
    assert data_name({"data": {"source": "hfds/ethz/food101", "root": "cache"}}) == "food101"
    assert data_name({"data": {"batch_size": 2}, "datamodule": "x.DigitsDataModule"}) == "digits"


def test_names_of_any_bytes_are_kept(finished, change, tmp_path):
    write_summary({"file": "photo\udce9.png"}, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"file": "photo\udce9.png"}
    page = compare([change(lambda s: s["data"].update(found="photo\udce9: 3 images"))])
    assert "photo\\udce9: 3 images" in page.read_text(encoding="utf-8")
