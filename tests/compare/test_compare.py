"""The comparison of mixers: tables, going on, the page, trainings, and what is refused."""

import csv
import re

import pytest

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
    assert [facts[name]["linear"] for name in MIXERS] == ["True", "False", "True"]
    assert facts["softmax"]["parameters"] == facts["mala"]["parameters"] > facts["soft"]["parameters"]
    cost = read_table(compared, "cost")
    assert len(cost) == 3 * 2 * 2
    assert {(row["tokens"], row["grid"], row["what"]) for row in cost} == {
        (tokens, grid, what)
        for tokens, grid in (("64", "8x8"), ("256", "16x16"))
        for what in ("forward", "forward+backward")
    }
    assert all(float(row["milliseconds"]) > 0 and row["torch"] and row["commit"] is not None for row in cost)


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
    for text in ("3 ways to mix tokens, compared", "How the cost grows", "comes near to", "256 tokens", *MIXERS):
        assert text in page


@pytest.mark.slow
def test_networks_are_trained_alike_and_a_run_goes_on(tmp_path, capsys):
    quick = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    arguments = ["--tokens", "16", "--data", "digits", "--seeds", "1", "--sizes", "40", "--options", *quick]
    assert main(["compare", "--mixers", "softmax", "--out", str(tmp_path / "c"), *arguments]) == 0
    (row,) = read_table(tmp_path / "c", "accuracy")
    assert (row["data"], row["seed"], row["metric"], row["not_measured"]) == ("digits", "42", "val/top1", "")
    assert 0 <= float(row["score"]) <= 1
    (other,) = read_table(tmp_path / "c", "transfer")
    assert other["img_size"] == "40"
    assert 0 <= float(other["score"]) <= 1
    config = (tmp_path / "c" / "runs" / "digits" / "softmax" / "42" / "0" / "config.yaml").read_text()
    assert "mixer: softmax" in config
    assert "Accuracy after equal training" in (tmp_path / "c" / "report.html").read_text()
    # other trainings do not go into the same tables
    assert main(["compare", "--mixers", "softmax", "--out", str(tmp_path / "c"), "--data", "digits"]) == 2
    assert "holds a comparison with options" in capsys.readouterr().err


def test_mean_spread_and_growth():
    rows = [
        {"name": name, "data": "d", "seed": str(i), "metric": "val/top1", "score": str(score), "seconds": "10"}
        for name, scores in (("a", (0.5, 0.7)), ("b", (0.9,)))
        for i, score in enumerate(scores)
    ]
    best, other = accuracies([*rows, {"name": "b", "data": "d", "seed": "9", "not_measured": "out of memory"}])
    assert (best["name"], best["mean"], best["spread"], best["seeds"]) == ("b", 0.9, None, 1)
    assert best["failed"] == "out of memory"
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
        (["--mixers", "sofd"], "mixer: there is no 'sofd'; did you mean soft"),
        (["--mixers", "soft", "soft"], "mixers must be different ones, soft is given twice"),
        (["--study", "newtn"], "study must be one of landmarks, sampling, newton"),
        (["--study", "newton", "--mixers", "performer"], "mixers: performer has no solver for the study newton"),
        (["--study", "newton", "--mixers", "soft", "softmax"], "the study newton is of one mixer"),
        (["--data", "no-such-folder"], "data must be one of digits, solar_cells, scenes, or a folder"),
        (["--seeds", "0"], "seeds must be 1 or more, got 0"),
        (["--tokens", "0"], "tokens must be 1 or more each, got 0"),
        (["--budget-minutes", "0"], "budget_minutes must be above 0, got 0"),
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
