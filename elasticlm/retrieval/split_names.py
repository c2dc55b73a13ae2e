"""What a split is called in different sets: the dev split of one is the validation split of another.

MNLI has two dev splits, matched (the genres of its training split) and mismatched (other genres). ``dev`` and
``validation`` mean the matched one there; ``dev_mismatched`` and ``validation_mismatched`` mean the other.
"""

from collections.abc import Collection

from elasticlm.command import say

MATCHED, MISMATCHED = "_matched", "_mismatched"
SPLIT_NAMES = {
    "dev": ("dev", "validation", "dev_matched", "validation_matched"),
    "validation": ("validation", "dev", "validation_matched", "dev_matched"),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "validation_matched": ("validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
}
"""The names that a split may have, the first that exists counts; a split that is not listed has its own name only."""


def split_among(wanted: str, names: Collection[str]) -> str | None:
    """Return the name under which a set has a split; None where it has none.

    >>> split_among("dev_mismatched", ["train", "validation_matched", "validation_mismatched"])
    'validation_mismatched'
    """
    return next((name for name in SPLIT_NAMES.get(wanted, (wanted,)) if name in names), None)


def say_which(spec: str, wanted: str, found: str) -> None:
    """Say which of MNLI's two dev splits is read where the split's name leaves it open."""
    if found.endswith(MATCHED) and not wanted.endswith(MATCHED):
        other = found.replace(MATCHED, MISMATCHED)
        say(f"{spec}: split {wanted} is {found} here; the other one is {other}")
