"""What is told of the classes and images that were found."""

import pytest

from softmaxfree.atomic import write_csv
from softmaxfree.data.telling import similar_names
from tests.data.test_labelled import found, write


def test_classes_whose_names_differ_in_case_alone_are_told_of(tmp_path):
    rows = [(f"{i}.png", ("Cat", "cat", "dog", "wild dog", "wilddog ")[i % 5]) for i in range(20)]
    for name, _ in rows:
        write(tmp_path / name)
    write_csv(tmp_path / "labels.csv", [{"image": name, "label": label} for name, label in rows])
    with pytest.warns(UserWarning, match="names differ in their writing") as caught:
        data = found(train_csv=str(tmp_path / "labels.csv"))
    told = "classes whose names differ in their writing alone count as two: 'Cat' and 'cat', 'wild dog' and 'wilddog'"
    assert [str(w.message) for w in caught] == data.remarks == [f"{tmp_path / 'labels.csv'}: {told}"]
    assert len(data.class_names) == 5


def test_letters_of_two_characters_and_numbers_with_a_point():
    told = "classes whose names differ in their writing alone count as two: "
    assert similar_names(["\xe9", "e\u0301", "dog"]) == told + r"'e\u0301' and '\xe9'"
    assert similar_names(["1", "1.0", "10", "2.5", "-1"]) == told + "'1' and '1.0'"
    assert similar_names(["\xd6l", "\xf6l"]) == told + "'\xd6l' and '\xf6l'"


def test_names_that_differ_in_more_are_not_told_of():
    assert similar_names(["cat", "cats", "dog", "Dog 2"]) == ""
    assert similar_names([]) == ""
