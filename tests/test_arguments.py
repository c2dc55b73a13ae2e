"""Checked types of options: what they take, and what they say of the rest."""

from argparse import ArgumentTypeError

import pytest

from elasticlm import command
from elasticlm.arguments import (
    at_least,
    list_of,
    non_negative_float,
    non_negative_int,
    or_auto,
    positive_float,
    positive_int,
)
from elasticlm.errors import InputError
from elasticlm.model.structure import parse_level


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive_int, "3", 3),
        (non_negative_int, "0", 0),
        (positive_float, "0.5", 0.5),
        (non_negative_float, "0", 0.0),
        (at_least(3), "3", 3),
        (list_of(positive_int), "8, 1", [8, 1]),
        (list_of(parse_level), "50,12.5", [50, 12.5]),
        (or_auto(positive_int), "auto", None),
        (or_auto(positive_int), "2", 2),
    ],
)
def test_values_are_read(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive_int, "0", "0: expected a whole number of 1 or more"),
        (positive_int, "1.5", "1.5: expected a whole number"),
        (non_negative_int, "-1", "expected a whole number of 0 or more"),
        (positive_float, "0", "expected a number above 0"),
        (positive_float, "nan", "expected a number above 0"),
        (positive_float, "inf", "expected a number above 0"),
        (non_negative_float, "-0.1", "expected a number of 0 or more"),
        (at_least(3), "2", "expected a whole number of 3 or more"),
        (list_of(positive_int), "8,0", "0: expected"),
        (list_of(positive_int), "8,8", "duplicate value"),
        (list_of(parse_level), "50,101", "expected a percentage"),
        (or_auto(positive_int), "automatic", "expected a whole number"),
    ],
)
def test_other_values_are_refused_with_what_is_expected(kind, text, message):
    with pytest.raises(ArgumentTypeError, match=message):
        kind(text)


def test_a_parser_refuses_bad_options_as_bad_input():
    options = command.parser("elasticlm example", "An example.")
    options.add_argument("--count", type=positive_int, default=1)
    with pytest.raises(InputError, match=r"argument --count: 0: expected .* \(see elasticlm example --help\)"):
        options.parse_args(["--count", "0"])
    with pytest.raises(InputError, match="unrecognized arguments: --coun"):
        options.parse_args(["--coun", "2"])
