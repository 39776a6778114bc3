"""Text as it can be shown in one line."""

from softmaxfree.printing import few


def test_few_never_says_one_more() -> None:
    assert few(["a", "b"], 2) == "a, b"
    assert few(["a", "b", "c"], 2) == "a, b, c"
    assert few(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert few(["a", "b"], 5, "; ") == "a; b"
