"""The final table: no row without a value."""

import math

from softmaxfree.cli.table import summary_rows
from tests.tasks.test_detection import task


def test_what_has_no_value_is_left_out():
    metrics = dict.fromkeys(task().summary, math.nan) | {"val/map50": 0.5}
    assert summary_rows(task(), metrics) == [("box AP (%)", "nan"), ("box AP50 (%)", "50.00")]
