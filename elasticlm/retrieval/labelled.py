"""Labelled sentences and sentence pairs: what a classifier is trained and judged on."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from elasticlm.errors import InputError

NAMES = {  # GLUE's own, in the order of its numbers
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "stsb": ("similarity",),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
}

Sentences = tuple[str, str | None]
"""A sentence, or a pair of them."""
Row = tuple[str, str | None, object]
"""First sentence, second sentence, label as the source has it: a class's number or name, or a value."""


@dataclass(frozen=True)
class Labelled:
    """One split of sentences with labels.

    Attributes:
        firsts, seconds: the sentences; ``seconds`` is None where there are no pairs.
        labels: names of the classes; a single one names the value of a regression.
        targets: IntArray [examples], classes by their place in ``labels``; of a regression FloatArray [examples].
    """

    spec: str
    split: str
    firsts: list[str]
    seconds: list[str] | None
    labels: tuple[str, ...]
    targets: np.ndarray

    @property
    def pairs(self) -> list[Sentences]:
        seconds = self.seconds if self.seconds is not None else [None] * len(self.firsts)
        return list(zip(self.firsts, seconds, strict=True))

    @property
    def split_sha256(self) -> str:
        """SHA-256 over sentences and labels in order."""
        digest = hashlib.sha256()
        for (first, second), target in zip(self.pairs, self.targets.tolist(), strict=True):
            digest.update(f"{first}\t{second}\t{target}\n".encode())
        return digest.hexdigest()

    def kept(self, rows: Sequence[int]) -> "Labelled":
        """These examples alone."""
        seconds = None if self.seconds is None else [self.seconds[i] for i in rows]
        firsts = [self.firsts[i] for i in rows]
        return Labelled(self.spec, self.split, firsts, seconds, self.labels, self.targets[list(rows)])


def labelled(
    spec: str, split: str, rows: Iterable[tuple[str, Row]], *, labels: Sequence[str] | None, name: str = ""
) -> Labelled:
    """Check a split's rows and join them.

    Args:
        rows: each with its place in the file, for messages.
        labels: the labels that a model knows; None: those of the data (whole numbers are classes, fractions a
            regression, words are names).
        name: of the set, by which GLUE's class names are known.

    Raises InputError, with the place, for a sentence that is missing or a label that is none.
    """
    found = list(rows)
    pairs = sentence_pairs(spec, split, found)
    for place, (_, _, label) in found:
        if isinstance(label, bool) or not isinstance(label, int | float | str):
            raise InputError(f"{place}: label {label!r}: expected a class (0, 1, ... or its name) or a value")
        if isinstance(label, float) and not math.isfinite(label):
            raise InputError(f"{place}: label {label!r} is no number")
    known = tuple(labels) if labels else _labels([(place, label) for place, (_, _, label) in found], name)
    targets = [_target(place, label, known) for place, (_, _, label) in found]
    return Labelled(
        spec=spec,
        split=split,
        firsts=[first for first, _ in pairs],
        seconds=None if pairs[0][1] is None else [second or "" for _, second in pairs],
        labels=known,
        targets=np.array(targets, dtype=np.float64 if len(known) == 1 else np.int64),
    )


def sentence_pairs(spec: str, split: str, rows: Iterable[tuple[str, Row]]) -> list[Sentences]:
    """Return the sentences or pairs of a split, whatever their labels are. Raises InputError as labelled() does."""
    pairs: list[Sentences] = []
    for place, (first, second, _) in rows:
        if not isinstance(first, str) or not first.strip():
            raise InputError(f"{place}: the first sentence is missing or empty")
        paired = pairs[0][1] is not None if pairs else second is not None
        if paired and (not isinstance(second, str) or not second.strip()):
            raise InputError(f"{place}: the second sentence is missing or empty, the first row has one")
        if not paired and second is not None:
            raise InputError(f"{place}: there is a second sentence, the first row has none")
        pairs.append((first, second))
    if not pairs:
        raise InputError(f"{spec}: split {split} is empty")
    return pairs


def _labels(placed: Sequence[tuple[str, object]], name: str) -> tuple[str, ...]:
    """The label names that the data itself shows."""
    values = [label for _, label in placed]
    if all(isinstance(label, str) for label in values):
        return tuple(sorted({str(label) for label in values}))
    if any(isinstance(label, float) for label in values):
        return NAMES["stsb"] if name == "stsb" else ("value",)
    place, last = max(((place, label) for place, label in placed if isinstance(label, int)), key=lambda one: one[1])
    names = NAMES.get(name, ())
    if names and last >= len(names):
        raise InputError(f"{place}: unknown label {last}; {name} has {', '.join(names)}")
    if last < 1:
        raise InputError(f"{place}: every label is {last}: there is nothing to tell apart")
    return names or tuple(str(i) for i in range(last + 1))


def _target(place: str, label: object, labels: Sequence[str]) -> float:
    if len(labels) == 1:
        if isinstance(label, str):
            raise InputError(f"{place}: unknown label {label!r}: the labels are values here")
        return float(label)  # type: ignore[arg-type]
    number = labels.index(label) if label in labels else label
    if not isinstance(number, int) or not 0 <= number < len(labels):
        hint = " (a hidden test split?)" if number == -1 else ""
        raise InputError(f"{place}: unknown label {label!r}{hint}; the labels are {', '.join(labels)}")
    return number
