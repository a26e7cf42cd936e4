"""docs/tools.md is what the tests' marks say."""

import pytest
import tools_table as table


def test_the_page_is_current(request):
    config = request.config
    if config.args != config.getini("testpaths") or config.option.keyword or config.option.markexpr:
        pytest.skip("only a run of all tests collects all marks")
    written = table.PAGE.read_text()
    assert written == table.page(table.rows(request.session.items)), "run: python tests/tools/tools_table.py"


class Item:
    """A test as far as the table looks at it."""

    def __init__(self, nodeid, *marks):
        self.nodeid = nodeid
        self._marks = marks

    def iter_markers(self, name):
        return [pytest.mark.tool(*mark).mark for mark in self._marks]


def test_rows_are_sorted_and_count_once():
    use = ("PEFT", "LoRA", "fast")
    items = [Item("a.py::b[1]", use), Item("a.py::b[2]", use), Item("a.py::c", ("DDP", "two ranks", "fast"))]
    assert [tuple(row) for row in table.rows(items)] == [
        ("DDP", "two ranks", "fast", "a.py::c"),
        ("PEFT", "LoRA", "fast", "a.py::b"),
    ]


def test_an_unknown_state_is_an_error():
    with pytest.raises(ValueError, match=r"a\.py::b: the state of a tool is one of"):
        table.rows([Item("a.py::b", ("PEFT", "LoRA", "quick"))])
