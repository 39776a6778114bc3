import json
import re
import shutil

import pytest
import yaml

from softmaxfree.errors import InputError
from softmaxfree.report import compare
from softmaxfree.report.differences import different_settings
from softmaxfree.report.page import ABSENT
from softmaxfree.weights import read_record


@pytest.fixture
def two(run_dir):
    """Two runs, of which the second has another learning rate and seed."""
    other = run_dir.parent / "1"
    shutil.copytree(run_dir, other)
    config = (other / "config.yaml").read_text()
    config = re.sub(r"(?m)^  lr: .*", "  lr: 0.125", config)
    (other / "config.yaml").write_text(re.sub(r"(?m)^  seed: .*", "  seed: 7", config, count=1))
    return run_dir, other


def test_several_runs_on_one_page(two):
    page = compare(two)
    assert page == two[0].parent / "report.html"
    text = page.read_text(encoding="utf-8")
    different = text[text.index('id="different"') : text.index('id="curves"')]
    assert re.findall(r"<td><code>(.*?)</code></td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>", different) == [
        ("run.seed", "42", "7"),
        ("model.lr", "0.004", "0.125"),
    ]
    assert "standard deviation" not in text  # of runs that are no repetitions of each other
    assert text.count("<svg") == 4  # training loss, and three metrics
    assert compare(two) == page  # an earlier page of ours may be replaced


def test_what_a_resumed_run_only_writes_otherwise_is_no_difference(two, finished):
    file = two[1] / "config.yaml"
    config = yaml.safe_load(file.read_text())
    given = config["model"]["model_args"]
    built = read_record(finished / "best.ckpt").arguments["model_args"]
    assert built != given
    table = "file,split\n0.png,train\n1.png,val\n"
    for folder in two:
        shutil.copy(finished / "best.ckpt", folder)
        (folder / "split.csv").write_text(table)
    config["data"]["split"] = str(two[1] / "split.csv")
    config["model"]["model_args"] = {**json.loads(json.dumps(built)), "drop_path_rate": 0.5}
    file.write_text(yaml.safe_dump(config))
    different = dict(different_settings(two))
    assert different == {
        "run.seed": ["42", "7"],
        "model.lr": ["0.004", "0.125"],
        "model.model_args.drop_path_rate": [str((given or {}).get("drop_path_rate", ABSENT)), "0.5"],
    }
    (two[1] / "split.csv").write_text(table.replace("val", "train"))
    assert dict(different_settings(two))["data.split"] == [ABSENT, str(two[1] / "split.csv")]


def test_runs_of_other_seeds_have_a_mean_and_a_spread(two):
    config = (two[1] / "config.yaml").read_text()
    (two[1] / "config.yaml").write_text(config.replace("  lr: 0.125", "  lr: 0.004"))
    summary = json.loads((two[1] / "summary.json").read_text())
    first = summary["metrics"]["val/top1"]
    summary["metrics"]["val/top1"] = 0.5
    (two[1] / "summary.json").write_text(json.dumps(summary))
    text = compare(two).read_text(encoding="utf-8")
    assert "over the runs, which differ in run.seed; a run" in text
    (line,) = re.findall(r"<tr><td>top-1</td>(.*)</tr>", text)
    mean, sd = re.findall(r"<td>([\d.]+)", line)[:2]
    assert float(mean) == pytest.approx(50 * (first + 0.5), abs=0.006)
    assert float(sd) == pytest.approx(100 * abs(first - 0.5) / 2**0.5, abs=0.006)


def test_images_that_cannot_be_read_are_not_counted(two):
    file = two[1] / "summary.json"
    summary = json.loads(file.read_text())
    summary["data"] |= {"num_images": {"train": 4000, "val": 1000}, "found": ""}
    summary["data"]["left_out"] = {"train": {"images": 40, "first": ["a.png: cut off"]}}
    file.write_text(json.dumps(summary))
    (row,) = re.findall(r"<tr><td>trained on</td>(.*?)</tr>", compare(two).read_text(encoding="utf-8"), re.DOTALL)
    assert re.findall(r"<td>([\d,.\s]+) images</td>", row) == ["4,000", "3,960"]
    own = compare([two[1]]).read_text(encoding="utf-8")
    assert "3,960 to train on, 1,000 to validate" in own


def test_no_score_is_best_where_the_images_are_others(two):
    text = compare(two).read_text(encoding="utf-8")
    assert "The best value of a row is bold." in text
    for row in re.findall(r"<tr><td>.*?</tr>", text, re.DOTALL):
        assert row.count("<td><b>") < 2  # no equal values
    file = two[1] / "summary.json"
    summary = json.loads(file.read_text())
    summary["data"]["num_images"]["val"] = 12
    file.write_text(json.dumps(summary))
    text = compare(two).read_text(encoding="utf-8")
    assert "are the same; the numbers of them differ here, so nothing is marked as best." in text
    assert "<td><b>" not in text


def test_nothing_is_compared_across_tasks(two):
    file = two[1] / "summary.json"
    summary = json.loads(file.read_text())
    summary |= {"task": "SegmentationTask", "labels": {"val/loss": ["validation loss", 1, 4]}}
    file.write_text(json.dumps(summary))
    text = compare(two).read_text(encoding="utf-8")
    assert "These runs are of classification and segmentation." in text
    assert "<b>0" not in text[text.index('id="scores"') : text.index('id="different"')]
    for task in ("classification", "segmentation"):
        assert len(re.findall(rf"<td>validation loss, {task}</td>.*</tr>", text)) == 1
    assert text.count("<svg") == 4 + 2
    assert "<th>digits/0</th><th>digits/1</th>" in text


def test_a_page_is_never_written_over_another_file(two, tmp_path):
    mine = tmp_path / "notes.html"
    mine.write_text("<p>my notes</p>")
    for runs in (two, two[:1]):
        with pytest.raises(InputError, match=r"notes.html is there and is no earlier output"):
            compare(runs, mine)
        with pytest.raises(InputError, match=r"summary.json would replace .*summary.json, which is read"):
            compare(runs, two[0] / "summary.json")
        with pytest.raises(InputError, match=r"0 is a folder"):
            compare(runs, two[0])
    assert mine.read_text() == "<p>my notes</p>"


def test_what_is_no_run(run_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"empty is no folder of a run: it has neither summary.json nor config.yaml"):
        compare([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"digits holds the runs 0; give one or more of them"):
        compare([run_dir.parent])
    with pytest.raises(InputError, match=r"metrics.csv is a file; give the folder of the run"):
        compare([run_dir / "metrics.csv"])
    with pytest.raises(InputError, match=r"0 is given twice"):
        compare([run_dir, f"{run_dir.parent}/./0"])
    with pytest.raises(InputError, match=r"name the folder of a run"):
        compare([])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", "{", r"summary.json is no JSON"),
        ("summary.json", "[]", r"summary.json is not of a run of softmaxfree"),
        ("summary.json", '{"version": 2}', r"summary.json is not of a run of softmaxfree, or of a later version"),
        ("summary.json", '{"version": 1}', r"summary.json is not whole: it lacks task, model"),
        ("summary.json", "\udcff", r"summary.json is no JSON"),
    ],
)
def test_a_broken_summary(run_dir, file, content, message):
    (run_dir / file).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=message):
        compare([run_dir])


def test_a_run_without_a_summary(run_dir):
    (run_dir / "summary.json").unlink()
    page = compare([run_dir]).read_text(encoding="utf-8")
    assert "There is no summary.json in" in page
    assert "2 of 2 epochs are in metrics.csv" in page
    assert page.count("<svg") == 2
    (run_dir / "metrics.csv").unlink()  # as after a kill in the first epoch
    page = compare([run_dir]).read_text(encoding="utf-8")
    assert "0 of 2 epochs are in metrics.csv" in page
    assert "<svg" not in page
    (run_dir / "config.yaml").write_text("{")
    with pytest.raises(InputError, match=r"config.yaml cannot be read"):
        compare([run_dir])


def test_a_table_that_is_none(run_dir):
    (run_dir / "summary.json").unlink()
    (run_dir / "metrics.csv").write_text("epoch,val/top1\n0,high\n")
    with pytest.raises(InputError, match=r"metrics.csv is no table of numbers"):
        compare([run_dir])


def test_runs_of_which_one_has_no_summary(two):
    (two[1] / "summary.json").unlink()
    page = compare(two).read_text(encoding="utf-8")
    assert "There is no summary.json in" in page
    assert page.count("<svg") == 4


def test_labels_of_a_run_without_a_summary_change_no_number(two):
    (two[0] / "summary.json").unlink()
    config = (two[0] / "config.yaml").read_text()
    (two[0] / "config.yaml").write_text(config.replace("softmaxfree.tasks", "own.tasks"))  # labels are not known
    text = compare(two).read_text(encoding="utf-8")
    assert "<td>top-1</td>" in text
    assert "<td>val/top1</td>" not in text
