"""The comparison of mixers: tables, going on, the page, trainings, and what is refused."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from softmaxfree.compare import training
from softmaxfree.compare.measures import grid_of
from softmaxfree.compare.run import read_table
from softmaxfree.compare.studies import STUDIES, variants
from softmaxfree.compare.summary import accuracies, slopes
from softmaxfree_cli import main

MIXERS = ["soft", "softmax", "mala"]


def call(out, *arguments):
    return main(["compare", "--mixers", *MIXERS, "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "of three"
    assert call(out, "--tokens", "64", "256") == 0
    return out


def test_the_tables_tell_cost_size_and_errors(compared):
    facts = {row["name"]: row for row in read_table(compared, "facts")}
    assert list(facts) == MIXERS
    assert all(float(row["padding_error"]) < 1e-4 for row in facts.values())
    assert all(1e-4 < float(row["bfloat16_error"]) < 0.05 for row in facts.values())
    assert facts["soft"]["approximates"] == "gaussian"
    assert float(facts["soft"]["error_to_exact"]) < 0.1  # a convolution with random weights would make it 1
    assert [facts[name]["landmarks"] for name in MIXERS] == ["mean", "", ""]
    assert 1e-4 < float(facts["soft"]["residual"]) < 0.02  # of 20 Newton steps with a ridge of 0.01
    assert [facts[name]["residual"] for name in MIXERS[1:]] == ["", ""]
    assert [facts[name]["linear"] for name in MIXERS] == ["True", "False", "True"]
    assert facts["softmax"]["parameters"] == facts["mala"]["parameters"] > facts["soft"]["parameters"]
    cost = read_table(compared, "cost")
    assert len(cost) == 3 * 2 * 2
    assert {(row["tokens"], row["grid"], row["what"]) for row in cost} == {
        (tokens, grid, what)
        for tokens, grid in (("64", "8x8"), ("256", "16x16"))
        for what in ("forward", "forward+backward")
    }
    assert all(0 < float(row["low"]) <= float(row["milliseconds"]) <= float(row["high"]) for row in cost)
    assert all(row["torch"] and row["commit"] is not None for row in cost)


def test_what_is_there_is_not_done_again_and_more_may_be_asked(compared, capsys):
    before = {name: read_table(compared, name) for name in ("facts", "cost")}
    assert call(compared, "--tokens", "64", "256") == 0
    assert capsys.readouterr().out.startswith("report ")
    assert call(compared, "--tokens", "64", "256", "100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split()[1:] for line in lines[:-1]] == [[f"{name},", "100"] for name in MIXERS]
    assert "the last one" in lines[-2]
    assert read_table(compared, "facts") == before["facts"]
    assert read_table(compared, "cost")[: len(before["cost"])] == before["cost"]


def test_a_comparison_that_was_stopped_goes_on(compared, tmp_path, capsys):
    out = tmp_path / "stopped"
    out.mkdir()
    (out / "settings.json").write_text((compared / "settings.json").read_text())
    with (compared / "facts.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (out / "facts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows[:2])  # killed after the first mixer
    assert call(out, "--tokens", "16") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"facts +(\w+):", line)[1] for line in lines if line.startswith("facts")] == ["softmax", "mala"]
    assert [row["name"] for row in read_table(out, "facts")] == MIXERS


def test_the_page_is_one_file_that_shows_all(compared):
    page = (compared / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert page.count("<svg") == 4
    for text in (
        "3 ways to mix tokens, compared",
        "How the cost grows",
        "random weights",
        "comes near to",
        "256 tokens",
        *MIXERS,
    ):
        assert text in page


@pytest.mark.slow
def test_networks_are_trained_alike_and_a_run_goes_on(tmp_path, capsys):
    quick = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    arguments = ["--tokens", "16", "--data", "digits", "--seeds", "1", "--sizes", "40", "--options", *quick]
    assert main(["compare", "--mixers", "softmax", "--out", str(tmp_path / "c"), *arguments]) == 0
    (row,) = read_table(tmp_path / "c", "accuracy")
    assert (row["data"], row["seed"], row["metric"], row["not_measured"]) == ("digits", "42", "val/top1", "")
    assert 0 <= float(row["score"]) <= 1
    assert 0.1 <= float(row["guess"]) < 0.3  # of ten classes
    (other,) = read_table(tmp_path / "c", "transfer")
    assert other["img_size"] == "40"
    assert 0 <= float(other["score"]) <= 1
    config = (tmp_path / "c" / "runs" / "digits" / "softmax" / "42" / "0" / "config.yaml").read_text()
    assert "mixer: softmax" in config
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Accuracy after equal training" in page
    assert f"On digits {row['validated']} images are validated, and to answer the largest class always gives" in page
    # other trainings do not go into the same tables
    assert main(["compare", "--mixers", "softmax", "--out", str(tmp_path / "c"), "--data", "digits"]) == 2
    assert "holds a comparison with options" in capsys.readouterr().err


def train_digits(out, *options):
    arguments = ["--tokens", "4", "--data", "digits", "--seeds", "1", *(["--options", *options] if options else [])]
    return main(["compare", "--mixers", "softmax", "--out", str(out), *arguments])


def interrupted(*files):
    def act(run):
        run.mkdir(parents=True, exist_ok=True)
        for name in files:
            (run / name).touch()
        raise KeyboardInterrupt

    return act


def test_a_training_goes_on_from_its_checkpoint(fake, tmp_path):
    fake.act = interrupted("config.yaml", "last.ckpt")
    assert train_digits(tmp_path / "c") == 130
    assert read_table(tmp_path / "c", "accuracy") == []
    fake.act = None
    assert train_digits(tmp_path / "c") == 0
    assert fake.commands[1][-2:] == ["--resume", str(tmp_path / "c" / "runs" / "digits" / "softmax" / "42" / "0")]
    (row,) = read_table(tmp_path / "c", "accuracy")
    assert (row["score"], row["threads"], row["not_measured"]) == ("0.5", "7", "")  # the threads of the training
    assert train_digits(tmp_path / "c") == 0
    assert len(fake.commands) == 2


@pytest.mark.parametrize("files", [(), ("config.yaml",)], ids=["before it began", "in the first epoch"])
def test_a_training_without_a_checkpoint_begins_again_in_its_place(files, fake, tmp_path):
    fake.act = interrupted(*files)
    assert train_digits(tmp_path / "c") == 130
    fake.act = None
    assert train_digits(tmp_path / "c") == 0
    assert "--resume" not in fake.commands[1]
    assert [path.name for path in (tmp_path / "c" / "runs" / "digits" / "softmax" / "42").iterdir()] == ["0"]
    assert read_table(tmp_path / "c", "accuracy")[0]["score"] == "0.5"


def test_the_run_that_finished_is_read(fake, tmp_path):
    for number in (0, 1):
        fake.act = lambda run: None
        folder = tmp_path / str(number)
        fake(["python", "-m", "softmaxfree", "train", "--out", str(folder)])
        (folder / "0").rename(tmp_path / f"run{number}")
    runs = tmp_path / "softmax"
    runs.mkdir()
    (tmp_path / "run0").rename(runs / "0")
    (runs / "0" / "summary.json").unlink()
    (tmp_path / "run1").rename(runs / "1")
    fake.commands.clear()
    assert training.train(variants(["softmax"])[0], "digits", 42, runs, {})["score"] == 0.5
    assert training.validate(runs, 40) == {"score": 0.5, "threads": 7}
    assert [command[3:5] for command in fake.commands] == [["validate", str(runs / "1")]]


def test_a_training_that_cannot_begin_is_not_noted(fake, tmp_path, capsys):
    def refuse(run):
        raise training.Failed("train digits ended with 2: model.opt: there is no 'foo'", 2)

    fake.act = refuse
    assert train_digits(tmp_path / "c", "model.opt=foo") == 2
    assert "not noted as done: 1 of 3 trials: train digits ended with 2" in capsys.readouterr().err
    assert read_table(tmp_path / "c", "accuracy") == []
    fake.act = None
    assert train_digits(tmp_path / "c", "model.opt=sgd") == 0  # no training is of the wrong options
    assert read_table(tmp_path / "c", "accuracy")[0]["score"] == "0.5"


def test_a_training_that_is_killed_is_not_noted(tmp_path, monkeypatch, capsys):
    kill = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    run = subprocess.run
    monkeypatch.setattr(training.subprocess, "run", lambda command, **given: run(kill, **given))
    assert train_digits(tmp_path / "c") == 2
    assert "train digits was killed; the system does that where memory does not suffice" in capsys.readouterr().err
    assert read_table(tmp_path / "c", "accuracy") == []


def test_errors_in_a_table_are_of_one_photograph(tmp_path, capsys):
    for name, size in (("small", (64, 64)), ("other", (512, 384))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    arguments = ["compare", "--mixers", "mala", "--tokens", "4", "--out", str(tmp_path / "c")]
    assert main([*arguments, "--image", str(tmp_path / "small.png")]) == 2
    assert "image must be at least 384 pixels high and 512 wide, got 64 x 64" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert main(arguments) == 0
    assert main([*arguments, "--image", str(tmp_path / "other.png")]) == 2
    assert "holds a comparison with image" in capsys.readouterr().err


def test_a_training_that_fails_on_its_way_is_noted(fake, tmp_path):
    def fail(run):
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        raise training.Failed("train digits ended with 2: the loss is not finite", 2, "all\nlines")

    fake.act = fail
    assert train_digits(tmp_path / "c") == 0
    told = read_table(tmp_path / "c", "accuracy")[0]["not_measured"]
    (path,) = (tmp_path / "c" / "runs").rglob("failed.txt")
    assert told == f"train digits ended with 2: the loss is not finite; all lines are in {path}"
    assert path.read_text() == "all\nlines"


def test_options_are_those_of_the_trainings(fake, tmp_path, capsys):
    out = tmp_path / "c"
    for option in ("trainer.max_epochs=1", "trainer.max_epochs=2"):  # of costs they change nothing
        assert main(["compare", "--mixers", "softmax", "--out", str(out), "--tokens", "4", "--options", option]) == 0
    assert train_digits(out, "trainer.max_epochs=3") == 0
    assert train_digits(out, "trainer.max_epochs=4") == 2
    assert "holds a comparison with options {'trainer.max_epochs': 3}" in capsys.readouterr().err
    assert main(["compare", "--mixers", "softmax", "--out", str(out), "--tokens", "9"]) == 0
    assert train_digits(out, "trainer.max_epochs=3") == 0
    assert train_digits(out) == 2
    assert len(fake.commands) == 1


def test_a_folder_is_known_by_its_whole_path(fake, tmp_path, monkeypatch, capsys):
    photos, others = tmp_path / "my photos", tmp_path / "other" / "my photos"
    for folder in (photos, others):
        for i, name in enumerate("abab"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{i}.png").write_text(str(i))  # listed, and not read before a training
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--mixers", "softmax", "--tokens", "4", "--seeds", "1", "--out", "c", "--data"]
    for again in ("my photos/", str(photos)):
        assert main([*arguments, "my photos", again]) == 2
        assert f"data must be different ones, {photos} is given twice" in capsys.readouterr().err
    assert main([*arguments, "my photos", "other/my photos"]) == 0
    assert main([*arguments, f"{photos}/"]) == 0
    assert [row["data"] for row in read_table(tmp_path / "c", "accuracy")] == [str(photos), str(others)]
    assert len(fake.commands) == 2
    assert {command[command.index("--data.root") + 1] for command in fake.commands} == {str(photos), str(others)}
    assert len(list((tmp_path / "c" / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("tokens", "grid"),
    [(1, (1, 1)), (3, (1, 3)), (7, (2, 3)), (13, (3, 4)), (101, (10, 10)), (1000, (25, 40)), (50_176, (224, 224))],
)
def test_the_grid_has_the_tokens_that_are_asked_where_it_can(tokens, grid):
    assert grid_of(tokens) == grid


def test_the_tokens_of_a_row_are_those_that_were_measured(tmp_path, capsys):
    out = tmp_path / "c"
    assert main(["compare", "--mixers", "mala", "--out", str(out), "--tokens", "6", "7", "8", "7"]) == 0
    rows = [row for row in read_table(out, "cost") if row["what"] == "forward"]
    told = [(row["asked"], row["tokens"], row["grid"]) for row in rows]
    assert told == [("6", "6", "2x3"), ("7", "6", "2x3"), ("8", "8", "2x4")]
    capsys.readouterr()
    assert main(["compare", "--mixers", "mala", "--out", str(out), "--tokens", "7"]) == 0
    assert capsys.readouterr().out.startswith("report ")
    # of the same tokens there is no growth
    twice = [{"name": "mala", "what": "forward", "tokens": "6", "milliseconds": "1", "peak_mib": "1"}] * 2
    assert slopes(twice) == []


def test_mean_spread_and_growth():
    rows = [
        {"name": name, "data": "d", "seed": str(i), "metric": "val/top1", "score": str(score), "seconds": "10"}
        for name, scores in (("a", (0.5, 0.7)), ("b", (0.9,)))
        for i, score in enumerate(scores)
    ]
    best, other = accuracies([*rows, {"name": "b", "data": "d", "seed": "9", "not_measured": "out of memory"}])
    assert (best["name"], best["mean"], best["spread"], best["seeds"]) == ("b", 0.9, None, 1)
    assert (best["remark"], best["guess"]) == ("out of memory", None)
    assert other["remark"] == ""
    for images, remark in (("20", "within chance of answering the largest class always"), ("2000", "")):
        (row,) = accuracies([{**row, "guess": "0.5", "validated": images} for row in rows if row["name"] == "a"])
        assert (row["remark"], row["validated"]) == (remark, int(images))
    assert other["mean"] == pytest.approx(0.6)
    assert other["spread"] == pytest.approx(0.02**0.5)
    cost = [
        {"name": "q", "what": "forward", "tokens": str(n), "milliseconds": str(n**2), "peak_mib": str(n)}
        for n in (10, 100, 1000)
    ]
    (slope,) = slopes(cost)
    assert (slope["time"], slope["memory"]) == (pytest.approx(2), pytest.approx(1))


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_changes_one_thing(study):
    rows = variants((), study)
    assert len({row.label for row in rows}) == len(rows) > 1
    assert {row.mixer for row in rows} == ({"soft", "gaussian"} if study == "kernel" else {"soft"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixers", "sofd"], "mixers: there is no 'sofd'; did you mean soft"),
        (["--mixers", "soft", "soft"], "mixers must be different ones, soft is given twice"),
        (["--study", "newtn"], "study must be one of landmarks, sampling, newton"),
        (["--study", "newton", "--mixers", "performer"], "mixers: performer has no solver for the study newton"),
        (["--study", "newton", "--mixers", "soft", "softmax"], "the study newton is of one mixer"),
        (["--data", "no-such-folder"], "data must be one of digits, solar_cells, scenes, or a folder"),
        (["--data", str(Path(__file__).parent)], "data: no images in"),
        (["--seeds", "0"], "seeds must be 1 or more, got 0"),
        (["--tokens", "0"], "tokens must be 1 or more each, got 0"),
        (["--budget-minutes", "0"], "budget_minutes must be above 0, got 0"),
        (["--threads", "0"], "threads must be 1 or more, got 0"),
        (["--sizes", "64"], "sizes needs data"),
        (["--data", "digits", "digits"], "data must be different ones, digits is given twice"),
        (["--options", "model.model_args.mixer=softmax"], "options: model.model_args.mixer is set by the comparison"),
        (["--options", "model.model_args.mixer_args={}"], "model.model_args.mixer_args is set by the comparison"),
        (["--options", "model.model_args.last_stage=softmax"], "model.model_args.last_stage is set by the comparison"),
        (["--options", "model.model_args={}"], "options: model.model_args is set by the comparison"),
        (["--options", "run.seed=7"], "options: run.seed is set by the comparison"),
        (["--options", "data.root=photos"], "options: data.root is set by the comparison"),
        (["--options", "resume=last"], "options must be of the form section.key=value, got 'resume=last'"),
        (["--options", "model.lr=["], "options: the value of model.lr is not YAML"),
        (
            ["--data", "digits", "--options", "trainer.max_epohs=1"],
            "options: unknown key trainer.max_epohs; did you mean trainer.max_epochs",
        ),
        (["--options", "max_epochs=3"], "options must be of the form section.key=value, got 'max_epochs=3'"),
    ],
)
def test_what_cannot_be_compared_is_named(arguments, message, tmp_path, capsys):
    assert main(["compare", "--out", str(tmp_path / "c"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_another_folder_is_not_written_to(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["compare", "--out", str(tmp_path)]) == 2
    assert "is neither empty nor a comparison" in capsys.readouterr().err


def test_two_comparisons_never_write_to_one_folder(tmp_path, capsys):
    arguments = ["compare", "--mixers", "softmax", "--out", str(tmp_path / "c"), "--tokens", "4"]
    assert main(arguments) == 0
    with FileLock(tmp_path / "c" / ".lock"):
        assert main(arguments) == 2
    assert f"another comparison writes to {tmp_path / 'c'} now" in capsys.readouterr().err
    assert main(arguments) == 0
