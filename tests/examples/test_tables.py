"""Tables as text."""

from parts.pages import tables


def test_table_lines_up():
    rows = {"average": {"EN": 6.0, "SD": 30.0}, '"x"': {"EN": 7.0, "SD": 1.0}}
    assert tables.text_table(rows).split("\n") == [
        "             EN      SD",
        "average   6.000  30.000",
        '"x"       7.000   1.000',
    ]


def test_zero_has_no_sign():
    assert [tables.percent(change) for change in (3.6, -0.4, 0.2, -12.0)] == [
        "+4 %", "0 %", "0 %", "-12 %",
    ]  # fmt: skip
    assert tables.percent(-0.04, 1) == "0 %"
    assert tables.percent(-0.06, 1) == "-0.1 %"
    assert tables.cell([-0.2, 0.1], 0) == "0 ± 0"
