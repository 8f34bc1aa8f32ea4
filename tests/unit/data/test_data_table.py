"""docs/reference/data.md says what the code does."""

from tests.data_table import PAGE, page


def test_the_tables_are_what_the_code_does(tmp_path):
    assert page(tmp_path) == PAGE.read_text(), "run: python -m tests.data_table"
