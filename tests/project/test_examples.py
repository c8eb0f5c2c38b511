"""The notebooks of `examples/` run and print the output that is stored in them."""

import re

import pytest
from notebooks import EXAMPLES, code_cells

NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_print_their_stored_output(path, capsys):
    namespace = {}
    for source, expected in code_cells(path):
        exec(source, namespace)
        printed = capsys.readouterr().out
        assert NUMBER.sub("N", printed) == NUMBER.sub("N", expected)
        numbers = [float(number) for number in NUMBER.findall(expected)]
        assert [float(n) for n in NUMBER.findall(printed)] == pytest.approx(numbers, rel=0.05)


def test_there_are_notebooks_with_results():
    printed = [text for path in EXAMPLES.glob("*.ipynb") for _, text in code_cells(path)]
    assert sum(map(bool, printed)) >= 2
