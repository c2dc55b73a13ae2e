"""The file format of evaluations: metrics per row, retention relative to the teacher, and values per query.

    {"format_version", "data", "split", "split_sha256", "metrics": {"teacher": {m: value}, "50": {..}},
     "retention": {"50": {m: [value, low, high]}}, "query_ids", "per_query": {"50": {m: [..]}}, ...}

Classifiers add ``"predictions": {"50": [..]}`` and ``"targets": [..]``, one entry per example in the order of
``query_ids``: numbers of classes, or values of a regression. Files from before this lack both.

``elasticlm evaluate`` writes it, ``elasticlm compare`` and the benchmarks read it. Intervals are 95% intervals of the
paired bootstrap over queries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.retrieval import measures as metrics

FORMAT_VERSION = 1
TEACHER = "teacher"
Values = Mapping[str, Mapping[str, np.ndarray]]
"""Each row's values by measure, FloatArrays [queries]; NaN where a measure does not apply to a query."""
Retention = Mapping[str, Mapping[str, Sequence[float | None] | None]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of several rows (the teacher, levels, baselines) on the same queries.

    Attributes:
        values: per_query of the file.
        metrics: each row's metrics; the means of its values where a measure is a mean.
        retention: [value, low, high] of a row's metric over the teacher's; empty where nothing is compared.
        predictions: of a classifier, each row's predictions, IntArrays or FloatArrays [examples]; else empty.
        targets: of a classifier, what is right, IntArray or FloatArray [examples]; else None.
        facts: what else the file says, such as the model, the index, what was fitted.
    """

    data: str
    split: str
    split_sha256: str
    query_ids: Sequence[str]
    values: Values
    metrics: Mapping[str, Mapping[str, float | None]]
    retention: Retention = field(default_factory=dict)
    predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    targets: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_means(
        cls,
        *,
        data: str,
        split: str,
        split_sha256: str,
        query_ids: Sequence[str],
        values: Values,
        retained: Sequence[str] = (),
        seed: int = 0,
        **facts: Any,
    ) -> Self:
        """An evaluation whose metrics are means over queries.

        Args:
            retained: rows whose retention of the teacher's row is computed.
            seed: of the bootstrap.
        """
        means = {
            row: {name: round(metrics.mean(column), metrics.DECIMALS) for name, column in columns.items()}
            for row, columns in values.items()
        }
        retention = {
            row: {name: metrics.rounded(metrics.retention(column, values[TEACHER][name], seed=seed))
                  for name, column in values[row].items()}
            for row in retained
        }  # fmt: skip
        return cls(data=data, split=split, split_sha256=split_sha256, query_ids=query_ids, values=values,
                   metrics=means, retention=retention, facts=facts)  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The evaluation's JSON; values with six decimals, null where a measure does not apply."""
        examples: dict[str, Any] = {}
        if self.targets is not None:
            examples["predictions"] = {row: column.tolist() for row, column in self.predictions.items()}
            examples["targets"] = self.targets.tolist()
        return {
            "format_version": FORMAT_VERSION,
            "data": self.data,
            "split": self.split,
            "split_sha256": self.split_sha256,
            "metrics": self.metrics,
            "retention": self.retention,
            **self.facts,
            "query_ids": list(self.query_ids),
            "per_query": {
                row: {name: metrics.rounded(column) for name, column in columns.items()}
                for row, columns in self.values.items()
            },
            **examples,
        }

    def write(self, file: str | Path, *, overwrite: bool) -> None:
        """Write the JSON file."""
        write_json(Path(file), self.to_json(), overwrite=overwrite)

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """Read what ``elasticlm evaluate`` wrote; raises InputError where the file is something else."""
        if not Path(file).is_file():
            raise InputError(f"no such file {file}")
        try:
            fields = json.loads(Path(file).read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: not JSON ({error})") from None
        needed = ("data", "split", "split_sha256", "query_ids", "per_query")
        if not isinstance(fields, dict) or not set(needed) <= set(fields):
            raise InputError(f"{file}: not an evaluation; expected a file written by `elasticlm evaluate`")
        values = {
            row: {name: np.array(column, dtype=float) for name, column in columns.items()}  # null becomes NaN
            for row, columns in fields["per_query"].items()
        }
        targets = fields.get("targets")
        known = {"format_version", "metrics", "retention", "predictions", "targets", *needed}
        return cls(
            data=fields["data"], split=fields["split"], split_sha256=fields["split_sha256"],
            query_ids=fields["query_ids"], values=values, metrics=fields.get("metrics", {}),
            retention=fields.get("retention", {}),
            predictions={row: np.array(column) for row, column in fields.get("predictions", {}).items()},
            targets=None if targets is None else np.array(targets),
            facts={name: value for name, value in fields.items() if name not in known},
        )  # fmt: skip


def write_json(path: Path, value: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a JSON file, whole or not at all."""
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False) + "\n", "utf-8")


def interval_cell(row: str, interval: Sequence[Any] | None) -> str:
    """A retention for people: its value and 95% interval."""
    if interval:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*interval)
    return "1" if row == TEACHER else "-"
