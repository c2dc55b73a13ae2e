"""Checked types for command-line options: ``type=positive_int`` and the like.

Each takes the option's text and returns its value, or raises ArgumentTypeError, which argparse prints with the option's
name before it exits with code 2.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

from elasticlm.errors import InputError

Value = TypeVar("Value")


def positive_int(text: str) -> int:
    """A whole number of 1 or more."""
    return _number(text, int, lambda value: value >= 1, "a whole number of 1 or more")


def non_negative_int(text: str) -> int:
    """A whole number of 0 or more."""
    return _number(text, int, lambda value: value >= 0, "a whole number of 0 or more")


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return _number(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """A finite number of 0 or more."""
    return _number(text, float, lambda value: 0 <= value < math.inf, "a number of 0 or more")


def at_least(least: int) -> Callable[[str], int]:
    """The type of whole numbers from ``least`` on."""

    def number(text: str) -> int:
        return _number(text, int, lambda value: value >= least, f"a whole number of {least} or more")

    return number


def list_of(kind: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """The type of a comma-separated list without duplicates, in the order given.

    >>> list_of(positive_int)("8,1")
    [8, 1]
    """

    def values(text: str) -> list[Value]:
        try:
            parts = [kind(part.strip()) for part in text.split(",")]
        except InputError as error:
            raise ArgumentTypeError(str(error)) from None
        if len(set(parts)) < len(parts):
            raise ArgumentTypeError(f"{text}: duplicate value")
        return parts

    return values


def or_auto(kind: Callable[[str], Value]) -> Callable[[str], Value | None]:
    """The type of a value or the word ``auto``, which is None."""
    return lambda text: None if text == "auto" else kind(text)


def _number(text: str, kind: Callable[[str], Value], fits: Callable[[Value], bool], expected: str) -> Value:
    try:
        value = kind(text)
        if fits(value):
            return value
    except ValueError:
        pass
    raise ArgumentTypeError(f"{text}: expected {expected}")
