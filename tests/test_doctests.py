"""The examples in docstrings are true. Modules are imported under their full names, so that no file is loaded twice."""

import doctest
import importlib

import pytest
from test_layout import modules

EXAMPLES = [name for name, file in modules().items() if ">>>" in file.read_text("utf-8")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_are_true(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 or "doctest: +SKIP" in modules()[name].read_text("utf-8")
    assert result.failed == 0
