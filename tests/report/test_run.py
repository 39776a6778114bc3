import json
import re

import numpy as np
import pytest
from PIL import Image

from softmaxfree.cli import train
from softmaxfree.report import compare
from softmaxfree.report.findings import confusion_counts, findings
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


def told(summary, counts):
    cells = [[i, j, count] for i, row in enumerate(counts) for j, count in enumerate(row) if count]
    names = ["good", "bad", "ugly"]
    total = sum(map(sum, counts))
    return findings(
        summary
        | {
            "confusion": {"of": "images", "images": total, "classes": 3, "cells": cells},
            "data": summary["data"] | {"class_names": names, "num_images": {"val": total}},
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
    assert "one of them is 5.0 percentage points" in told(summary, [[10, 0, 0], [1, 5, 0], [0, 0, 4]])[0]
    one_sided = told(summary, [[200, 0, 0], [200, 100, 0], [200, 0, 100]])
    assert one_sided[0] == "The model gives one class, good, to 75 % of the images, and 25 % are of it."
    remarked = told(summary | {"remark": "nothing is found: try more epochs"}, [[300, 0, 0], [0, 300, 0], [0, 0, 300]])
    assert remarked == ["Nothing is found: try more epochs."]
    longer = summary | {"epochs": [*summary["epochs"], *summary["epochs"]], "best_epoch": 4}
    assert told(longer, [[300, 0, 0], [0, 300, 0], [0, 0, 300]])[0].startswith("The best epoch is the last of 4")
