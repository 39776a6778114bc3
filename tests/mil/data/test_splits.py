"""Splits of CLAM and TransMIL, and those that are drawn."""

from collections import Counter

import pytest

from softmaxfree.errors import InputError
from softmaxfree.mil.data.splits import check_split, draw, find_split, read_split
from tests.mil.data.slide_files import write_csv

WANTED = {"a1": "train", "a2": "train", "b": "val", "007": "test"}


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        (",train,val,test", ["0,a1,b,007", "1,a2,,"]),
        (
            ",train,val,test",
            ["a1,True,False,False", "a2,True,False,False", "b,False,True,False", "007,False,False,True"],
        ),
        ("", ["train,val,test", "a1.svs,b.svs,007.svs", "a2.svs,,"]),
        (",train,train_label,val,val_label,test,test_label", ["0,a1,1,b,0.0,007,1.0", "1,a2,0,,,,"]),
        ("slide_id,split", ["a1,train", "a2,train", "b,val", "007,test"]),
        (",slide_id,split", ["0,a1,train", "1,a2,train", "2,b,val", "3,007,test"]),
        ("case_id;slide_id;split", ["c;a1;train", "c;a2;train", "d;b;val", "e;007;test"]),
        (",train,val,test", ["a1,True", "a2,True,False", "b,False,True", "007,False,False,True"]),
        ("train\tval\ttest", ["a1\tb\t007", "a2\t\t"]),
        (",train,val,test", ["0,a1,b,007", "1,a2,nan,nan"]),
        (
            ",slide_id,train,val,test",
            ["0,a1,True,False,False", "1,a2,True,False,False", "2,b,False,True,False", "3,007,False,False,True"],
        ),
        ("file,split", ["a1,train", "a2,train", "b,val", "007,test"]),
    ],
)
def test_every_format(tmp_path, head, rows):
    split, labels = read_split(write_csv(tmp_path / "splits_0.csv", head, *rows))
    assert split == WANTED
    assert labels == ({"a1": "1", "a2": "0", "b": "0", "007": "1"} if "label" in head else {})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([",train,val", "0,a,b", "1,b,"], r"splits_0.csv has slide b in two splits, train and val"),
        (["slide_id,split", "a,train", "a,train"], r"has slide a twice in train"),
        (["slide_id,split", "a,hold"], r"slide a must be of train, val or test, got 'hold'"),
        (["slide_id,split", "a,train", "b"], r"slide b must be of train, val or test, got ''"),
        (["slide,group", "a,1"], r"must have the columns train, val .*; it has slide, group"),
        ([], r"it has nothing"),
        ([",train,train_label,val,val_label", "0,a,1,b,0", "1,c,,d,1"], r"splits_0.csv has no label of slide c: ''"),
        ([",train,train_label,val,val_label", "0,a,1,b,0", "1,c,NaN,d,1"], r"has no label of slide c: "),
    ],
)
def test_bad_splits(tmp_path, rows, message):
    path = tmp_path / "splits_0.csv"
    path.write_text("\n".join(rows))
    with pytest.raises(InputError, match=message):
        read_split(path)


def test_a_case_in_two_splits():
    cases = {"a1": "A", "a2": "A", "b": "B"}
    with pytest.raises(InputError, match="case A is in two splits: slide a1 in train, slide a2 in val"):
        check_split({"a1": "train", "a2": "val", "b": "val"}, cases, "s.csv")
    with pytest.raises(InputError, match="has no slides to validate"):
        check_split({"a1": "train", "a2": "train"}, cases, "s.csv")


def test_a_folder_has_a_file_for_each_fold(tmp_path):
    for name in ("splits_1.csv", "splits_1_bool.csv", "fold2.csv"):
        (tmp_path / name).touch()
    assert find_split(str(tmp_path), 1).name == "splits_1.csv"
    assert find_split(str(tmp_path), 2).name == "fold2.csv"
    with pytest.raises(InputError, match=r"has none of splits_3.csv, splits_3_bool.csv, fold3.csv"):
        find_split(str(tmp_path), 3)
    with pytest.raises(InputError, match=r"give data\.fold"):
        find_split(str(tmp_path), None)


CASES = {f"s{i}": f"c{i // 2}" for i in range(80)}  # two slides a case
STRATA = {name: "xxxy"[int(case[1:]) % 4] for name, case in CASES.items()}


@pytest.mark.parametrize("folds", [None, 5])
def test_a_split_keeps_cases_together_and_the_classes_balanced(folds):
    split = draw(CASES, STRATA, seed=1, folds=folds, fold=2 if folds else None)
    check_split(split, CASES, "")
    for side in set(split.values()):
        counts = Counter(STRATA[name] for name, own in split.items() if own == side)
        assert counts["x"] == pytest.approx(3 * counts["y"], abs=4)
    assert split == draw(CASES, STRATA, seed=1, folds=folds, fold=2 if folds else None)
    assert split != draw(CASES, STRATA, seed=2, folds=folds, fold=2 if folds else None)
    counts = Counter(split.values())
    assert counts["test"] == (16 if folds else 0)
    assert counts["val"] == pytest.approx(0.2 * (80 - counts["test"]), abs=4)


def test_each_case_is_tested_once():
    folds = [draw(CASES, STRATA, seed=1, folds=5, fold=k) for k in range(5)]
    tested = Counter(name for split in folds for name, side in split.items() if side == "test")
    assert tested == dict.fromkeys(CASES, 1)


def test_too_few_cases():
    with pytest.raises(InputError, match=r"there are 40 cases with features; 41 or more are needed"):
        draw(CASES, STRATA, 0, folds=41, fold=0)
