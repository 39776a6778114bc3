"""Tables: a row is a line, and none is without a value."""

import math

from softmaxfree.cli.table import markdown_table, plain_table, print_table, summary_rows
from tests.tasks.test_detection import task


def test_a_row_is_a_line_whatever_a_name_holds(capsys):
    columns, rows = ("class", "F1 (%)"), [["a\nb", "1.00"], ["c\r\x1b[31m\u2028", "2.00"], ["größe 日本", "3.00"]]
    for text, lines in ((plain_table(columns, rows), 4), (markdown_table(columns, rows), 5)):
        assert len(text.splitlines()) == lines
        assert r"a\nb" in text
        assert r"c\r\x1b[31m\u2028" in text
        assert "größe 日本" in text
    print_table(columns, rows)
    assert capsys.readouterr().out == plain_table(columns, rows) + "\n"


def test_what_has_no_value_is_left_out():
    metrics = dict.fromkeys(task().summary, math.nan) | {"val/map50": 0.5}
    assert summary_rows(task(), metrics) == [("box AP (%)", "nan"), ("box AP50 (%)", "50.00")]
