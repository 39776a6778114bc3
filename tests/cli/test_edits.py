"""What was edited in a recipe since a run began."""

import pytest

from softmaxfree.cli.recorded import _TAKEN_OUT, _edits


@pytest.mark.parametrize("empty", [{"model": {"args": None}}, {"model": {"args": {}}}, {"model": {}}, {}])
def test_a_section_that_is_left_empty_is_no_edit_by_itself(empty):
    full, key = {"model": {"args": {"rate": 0.1}}}, ("model", "args", "rate")
    assert _edits(empty, full) == {key: 0.1}
    assert _edits(full, empty) == {key: _TAKEN_OUT}
    assert _edits(empty, empty) == {}
