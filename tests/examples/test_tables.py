"""Tables as text."""

from parts.pages import tables


def test_table_lines_up():
    rows = {"average": {"EN": 6.0, "SD": 30.0}, '"x"': {"EN": 7.0, "SD": 1.0}}
    assert tables.text_table(rows).split("\n") == [
        "             EN      SD",
        "average   6.000  30.000",
        '"x"       7.000   1.000',
    ]
