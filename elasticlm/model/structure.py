"""Elastic structures: which heads and neurons a level keeps (ElasticLM, section 4.1).

Units are ranked once over the whole model; a level keeps the best of them. Every layer stores its units in rank order,
so a level is fully described by two small numbers a layer: how many heads and how many neurons of it form the prefix.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elasticlm.errors import InputError

Level = int | float
WHOLE = 100
"""The level that keeps every unit."""
TEACHER_WEIGHTS = {"weights": "teacher"}
"""What config.json has at level 100 if that is the teacher."""


@dataclass(frozen=True)
class Pair:
    """Levels of a pipeline: a retriever's, and that of the reranker behind it. Written ``50+10``."""

    retriever: Level
    reranker: Level

    def __str__(self) -> str:
        return f"{level_name(self.retriever)}+{level_name(self.reranker)}"


Choice = Level | Pair
"""What a policy chooses: a level; of a pipeline a pair, or the retriever's level, alone."""


def parse_level(text: str | Level) -> Level:
    """Return a level from its text, the percentage of prunable parameters kept: ``"50"`` -> 50, ``"12.5"`` -> 12.5."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise InputError(f"level {text!r}: expected a percentage above 0 and at most 100, such as 50")
    return int(value) if value.is_integer() else value


def parse_levels(text: str) -> tuple[Level, ...]:
    """Return levels from a comma-separated list, largest first."""
    levels = [parse_level(part.strip()) for part in text.split(",")]
    if len(set(levels)) < len(levels):
        raise InputError(f"levels {text!r}: duplicate level")
    return tuple(sorted(levels, reverse=True))


def parse_choice(text: str) -> Choice:
    """Return a level, or a pair of them, from its text: ``"50"``, ``"50+10"``."""
    retriever, plus, reranker = text.partition("+")
    return Pair(parse_level(retriever), parse_level(reranker)) if plus else parse_level(retriever)


def level_name(level: Choice) -> str:
    """Return the level, or the pair, as it is written in files: ``"50"``, ``"12.5"``, ``"50+10"``."""
    return str(level if isinstance(level, Pair) else parse_level(level))


@dataclass(frozen=True)
class Structure:
    """Heads and neurons kept in each layer; 0 leaves that block's bias alone."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "neurons", tuple(self.neurons))
        if len(self.heads) != len(self.neurons):
            raise InputError(f"structure: {len(self.heads)} layers of heads, {len(self.neurons)} of neurons")
        if not all(type(units) is int and units >= 0 for units in self.heads + self.neurons):
            raise InputError("structure: units kept per layer must be whole numbers, 0 or more")

    @property
    def layers(self) -> int:
        return len(self.heads)

    def contains(self, other: "Structure") -> bool:
        """Whether ``other`` is nested in this structure, unit by unit."""
        pairs = zip(self.heads + self.neurons, other.heads + other.neurons, strict=True)
        return self.layers == other.layers and all(mine >= theirs for mine, theirs in pairs)


class ElasticStructure(Mapping[Level, Structure]):
    """The structures of one model, largest level first: nested, but for level 100 where that is the teacher.

    Args:
        top: whether level 100 is the teacher, with weights of its own; the levels below share one second set.

    Raises InputError unless every level is contained in the next larger one.
    """

    def __init__(self, structures: Mapping[Level, Structure], *, top: bool = False) -> None:
        if not structures:
            raise InputError("levels: at least one is needed")
        self._structures = dict(sorted(structures.items(), reverse=True))
        self.levels: tuple[Level, ...] = tuple(self._structures)
        self.top = top
        if top and (self.largest != WHOLE or len(self) < 2):
            raise InputError("levels: only level 100 can be the teacher, and needs a smaller level next to it")
        for larger, smaller in zip(self.levels, self.levels[1:], strict=False):
            if not self[larger].contains(self[smaller]):
                raise InputError(f"level {smaller} is not nested in level {larger}")

    def __getitem__(self, level: Level) -> Structure:
        if level not in self._structures:
            raise InputError(f"level {level} is not among the levels {', '.join(map(str, self.levels))}")
        return self._structures[level]

    def __iter__(self) -> Iterator[Level]:
        return iter(self._structures)

    def __len__(self) -> int:
        return len(self._structures)

    def __contains__(self, level: object) -> bool:
        return level in self._structures

    @property
    def largest(self) -> Level:
        return self.levels[0]

    @property
    def nested(self) -> "ElasticStructure":
        """The levels that share one set of weights, and are trained: all but a teacher on top."""
        return ElasticStructure({level: self[level] for level in self.levels[1:]}) if self.top else self

    @property
    def smallest(self) -> Level:
        return self.levels[-1]

    @classmethod
    def from_json(cls, levels: Mapping[str, Mapping[str, Any]], whole: Structure) -> "ElasticStructure":
        """Read the ``levels`` of config.json: ``{"50": {"heads": [..], "neurons": [..]}}``, perhaps a teacher on top.

        Args:
            whole: the teacher's structure.
        """
        own = [name for name, kept in levels.items() if isinstance(kept, Mapping) and "weights" in kept]
        if unknown := [name for name in own if levels[name] != TEACHER_WEIGHTS or parse_level(name) != WHOLE]:
            raise InputError(f"level {unknown[0]}: expected heads and neurons, or at level 100 {TEACHER_WEIGHTS}")
        try:
            return cls({parse_level(name): whole if name in own else Structure(kept["heads"], kept["neurons"])
                        for name, kept in levels.items()}, top=bool(own))  # fmt: skip
        except (AttributeError, KeyError, TypeError):
            raise InputError('levels: expected {"50": {"heads": [a number a layer], "neurons": [..]}, ...}') from None

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The ``levels`` of config.json."""
        nested = {level_name(k): {"heads": list(s.heads), "neurons": list(s.neurons)} for k, s in self.nested.items()}
        return ({level_name(WHOLE): dict(TEACHER_WEIGHTS)} if self.top else {}) | nested

    @classmethod
    def from_scores(
        cls, head_scores: np.ndarray, neuron_scores: np.ndarray, levels: Sequence[Level], *, top: bool = False
    ) -> tuple["ElasticStructure", np.ndarray, np.ndarray]:
        """Nest levels by expressive score (ElasticLM, section 4.1).

        Args:
            head_scores: expressive scores [layers, heads]; comparable over layers (already normalised per layer).
            neuron_scores: the same for neurons [layers, neurons].
            levels: percentages; level k keeps max(1, floor(k/100 * count + 0.5)) units of each kind over the model.
            top: whether level 100 is the teacher, see the class.

        Returns:
            The structures, and for heads and neurons the rank order [layers, units] of each layer's units, best first.
            Ties go to the lower layer, then to the lower index.
        """
        heads = [_kept(head_scores, level) for level in levels]
        neurons = [_kept(neuron_scores, level) for level in levels]
        structures = {k: Structure(h, n) for k, h, n in zip(levels, heads, neurons, strict=True)}
        return cls(structures, top=top), _rank_order(head_scores), _rank_order(neuron_scores)


def _kept(scores: np.ndarray, level: Level) -> tuple[int, ...]:
    """Units of each layer among the best of the whole model at this level."""
    layers, units = scores.shape
    count = max(1, math.floor(level / 100 * scores.size + 0.5))
    best = np.argsort(-scores.ravel(), kind="stable")[:count]
    return tuple(np.bincount(best // units, minlength=layers).tolist())


def _rank_order(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")
