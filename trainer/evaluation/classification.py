"""How well every level classifies: GLUE's measures against a teacher and the majority, for ``elasticlm evaluate``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from elasticlm.command import progress, say
from elasticlm.errors import InputError
from elasticlm.model.batching import batches_by_length
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level, level_name
from elasticlm.retrieval.data_specs import load_labelled
from elasticlm.retrieval.labelled import Labelled
from elasticlm.retrieval.measures import resampled_retention, rounded
from elasticlm.trainer.evaluation.base import TEACHER, Evaluation, interval_cell
from elasticlm.trainer.evaluation.glue_measures import Measure, measures_of
from elasticlm.trainer.training_texts import TokenizedTexts

MAJORITY = "majority"
BATCH_SIZE = 32


def evaluate(
    model: ElasticModel, teacher: ElasticModel | None, spec: str, split: str, levels: Sequence[Level], *, seed: int = 0
) -> Evaluation:
    """Measure the levels of a classifier on a split.

    Args:
        teacher: the classifier that retention is measured against; None takes this one's largest level.

    Returns:
        Rows "teacher", each level, and of classes "majority", with their predictions; the values of examples are their
        accuracy, or squared error.

    Raises InputError where the teacher knows other labels.
    """
    labels = model.config.labels
    data = load_labelled(spec, split, labels)
    say(f"{spec}, {split}: {len(data.firsts):,} examples, labels {', '.join(labels)}")
    texts = TokenizedTexts.of_pairs(model, data.pairs)
    found = {level_name(level): predictions(model, level, texts) for level in levels}
    if teacher is not None:
        reference = predictions_of(teacher, data)
    else:
        largest = model.structures.largest
        measured = found.get(level_name(largest))
        reference = predictions(model, largest, texts) if measured is None else measured
    return evaluation_of(found, reference, data, seed=seed)


def predictions_of(teacher: ElasticModel, data: Labelled) -> np.ndarray:
    """What a teacher predicts for a split at its largest level. Raises InputError where it knows other labels."""
    if teacher.config.labels != data.labels:
        known = ", ".join(teacher.config.labels) or "none"
        raise InputError(f"the teacher {teacher.config.teacher.name or ''} knows other labels ({known})")
    return predictions(teacher, teacher.structures.largest, TokenizedTexts.of_pairs(teacher, data.pairs))


def evaluation_of(
    found: Mapping[str, np.ndarray],
    reference: np.ndarray,
    data: Labelled,
    *,
    seed: int = 0,
    **facts: Any,
) -> Evaluation:
    """Return the evaluation of predictions, [examples] by row, relative to the teacher's."""
    measures, targets, regression = measures_of(data.labels), data.targets, len(data.labels) == 1
    rows = {TEACHER: reference} | dict(found)
    if not regression:
        rows[MAJORITY] = np.full(len(targets), np.bincount(targets).argmax())
    error = "squared error" if regression else "accuracy"
    return Evaluation(
        data=data.spec,
        split=data.split,
        split_sha256=data.split_sha256,
        query_ids=[str(i) for i in range(len(targets))],
        values={name: {error: _each(row, targets, regression=regression)} for name, row in rows.items()},
        metrics={
            name: dict(zip(measures, rounded([kind(row, targets) for kind in measures.values()]), strict=True))
            for name, row in rows.items()
        },
        retention={
            name: {kind: _retention(measure, row, reference, targets, seed) for kind, measure in measures.items()}
            for name, row in found.items()
        },
        predictions=rows,
        targets=targets,
        facts=facts,
    )


def predictions(model: ElasticModel, level: Level, texts: TokenizedTexts) -> np.ndarray:
    """Each example's class, IntArray [examples], or value, FloatArray [examples], at a level."""
    found = outputs(model, level, texts, desc="classify")
    return found.squeeze(-1).double().numpy() if found.shape[-1] == 1 else found.argmax(-1).numpy()


def outputs(model: ElasticModel, level: Level, texts: TokenizedTexts, *, desc: str) -> torch.Tensor:
    """What the head answers to texts or pairs at a level, as served (fp32): FloatTensor [texts, labels or 1]."""
    found = torch.empty(len(texts), max(1, len(model.config.labels)))
    bar = progress(total=len(texts), desc=f"{desc} at {level_name(level)}", unit="text")
    for rows in batches_by_length(texts.lengths, max_rows=BATCH_SIZE):
        found[rows] = model.encode(texts.inputs(rows), level).float().cpu().view(len(rows), -1)
        bar.update(len(rows))
    bar.close()
    return found


def table(result: Evaluation) -> list[dict[str, str]]:
    """One row per level for people; retention of the first measure with its 95% interval."""
    rows = []
    for name, values in result.metrics.items():
        first = next(iter(values))
        interval = interval_cell(name, result.retention.get(name, {}).get(first))
        cells = {kind: "-" if value is None else f"{value:.4f}" for kind, value in values.items()}
        rows.append({"level": name} | cells | {f"retention of {first}": interval})
    return rows


def _retention(
    measure: Measure, row: np.ndarray, reference: np.ndarray, targets: np.ndarray, seed: int
) -> list[float | None] | None:
    return rounded(
        resampled_retention(
            lambda some: (measure(row[some], targets[some]), measure(reference[some], targets[some])),
            len(targets),
            seed=seed,
        )
    )


def _each(predicted: np.ndarray, targets: np.ndarray, *, regression: bool) -> np.ndarray:
    return (predicted - targets) ** 2 if regression else (predicted == targets).astype(float)
