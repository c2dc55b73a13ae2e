"""Retrieval quality of every level, compared with the teacher.

Passages are encoded once by the encoder that the artifact names, or come from an index; queries are encoded by every
level. Retention is a level's metric divided by the teacher's metric with the teacher's own passages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from elasticlm import command
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level, level_name
from elasticlm.model.teacher import passage_encoder, teacher_of
from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.answers import SUCCESS_MEASURES, AnswerMatcher
from elasticlm.retrieval.corpus import Qrels, cache_folder
from elasticlm.retrieval.data_specs import RetrievalData, load_corpus
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer.evaluation.base import TEACHER, Evaluation, interval_cell
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.stored_vectors import stored_vectors
from elasticlm.trainer.training_texts import UntokenizedPassages

SHOWN = ("RR@10", "nDCG@10", "R@100", *SUCCESS_MEASURES, *metrics.CANDIDATE_MEASURES)
RETAINED = ("RR@10", "Success@20")  # the first of them that was measured is shown


@dataclass(frozen=True)
class Row:
    """What was measured for the teacher or for a level: its run, and each measure's values [queries]."""

    run: metrics.Run
    values: Mapping[str, np.ndarray]


def measure(
    model: ElasticModel,
    teacher: ElasticModel,
    data: RetrievalData,
    levels: Sequence[Level],
    *,
    index: PassageIndex | None = None,
    batch_size: int = 32,
) -> tuple[dict[str, Row], ElasticModel]:
    """Measure the teacher with its own passages, and each level with the passages of its artifact.

    Of a set with answers, Success@k is measured, and the other measures if queries are judged too.

    Returns the rows by name (teacher first, then "100", "50", ...) and the encoder of the artifact's passages.
    """
    matcher = None if data.answers is None else AnswerMatcher(data)
    teachers_encoder = passage_encoder(teacher)
    encoder = teachers_encoder if _shares_passages(model, teachers_encoder) else passage_encoder(model)
    shared = encoder.fingerprint() == teachers_encoder.fingerprint()
    if index is not None:
        check_index(index, model, encoder, data)
    else:
        index = encode_passages(encoder, data)
    teachers_index = index if shared else encode_passages(teachers_encoder, data)
    rows = {TEACHER: _row(teacher, teacher.structures.largest, data, teachers_index, batch_size, matcher)}
    for level in levels:
        measured = model.at(level) is teacher and model.backend.name == teacher.backend.name
        rows[level_name(level)] = rows[TEACHER] if measured else _row(model, level, data, index, batch_size, matcher)
    return rows, encoder


def evaluation_of(rows: Mapping[str, Row], data: RetrievalData, *, seed: int = 0, **facts: object) -> Evaluation:
    """Return the evaluation of these rows; retention is that of all but the teacher."""
    return Evaluation.of_means(
        data=data.spec, split=data.split, split_sha256=data.split_sha256, query_ids=data.query_ids,
        values={name: row.values for name, row in rows.items()}, retained=[name for name in rows if name != TEACHER],
        seed=seed, **facts,
    )  # fmt: skip


def table(result: Evaluation) -> list[dict[str, str]]:
    """One row per level for people; retention of RR@10, or of Success@20, with its 95% interval."""
    rows = []
    for name, values in result.metrics.items():
        retained = next(measure for measure in RETAINED if measure in values)
        interval = interval_cell(name, result.retention.get(name, {}).get(retained))
        cells = {measure: f"{values[measure]:.4f}" for measure in SHOWN if measure in values}
        rows.append({"level": name} | cells | {f"retention of {retained}": interval})
    return rows


def is_teacher(model: ElasticModel) -> bool:
    """Whether this is a teacher as it is, without levels below: what encodes its passages is itself."""
    passages = model.config.passages
    return model.top is None and passages.encoder == "teacher" and model.has_fingerprint(passages.fingerprint)


def reference_teacher(model: ElasticModel, name: str | None) -> ElasticModel:
    """Return what retention is measured against: what the option names, else the teacher that the artifact names."""
    if name is None and (model.top is not None or is_teacher(model)):
        return model.at(model.structures.largest)
    name = name or model.config.teacher.name
    if not name:
        raise InputError("the artifact names no teacher to measure retention against: give --teacher")
    return teacher_of(model, name)


def encode_passages(encoder: ElasticModel, data: RetrievalData) -> PassageIndex:
    """Encode the set's passages; vectors that were computed before come from the user's cache."""
    texts = UntokenizedPassages(encoder, data.passages)
    vectors = stored_vectors(encoder, texts, Processes("fp32"), desc="passages")
    with TemporaryDirectory(dir=cache_folder()) as folder:  # the index stays mapped when its file has no name any more
        return PassageIndex.write(
            Path(folder) / "index", vectors.blocks(), data.passage_ids, dim=encoder.config.vector_size,
            fingerprint=encoder.fingerprint(), corpus_sha256=None,
        )  # fmt: skip


def check_index(index: PassageIndex, model: ElasticModel, encoder: ElasticModel, data: RetrievalData) -> None:
    """Raise InputError unless the index goes with the model and holds the set's passages."""
    spec = data.corpus_spec or data.spec
    index.check_against(model, lambda: encoder, lambda: [load_corpus(spec)])
    if missing := index.missing(data.passage_ids):
        raise InputError(
            f"{index.name}: {len(missing):,} of the {len(data.passage_ids):,} passages of {spec} are not in it, "
            f"such as {missing[0]!r}"
        )
    if len(index) > len(data.passage_ids):
        command.say(f"{index.name}: {len(index) - len(data.passage_ids):,} more passages than {spec} compete here")


def first_stage(
    data: RetrievalData, query_ids: Sequence[str], queries: np.ndarray, index: PassageIndex, depth: int
) -> metrics.Run:
    """Return the best ``depth`` passages of each query vector [queries, dim]; no query finds itself."""
    run = metrics.make_run(query_ids, *index.search(queries, depth + data.has_self_hits))
    return {qid: dict(islice(data.without_self(qid, hits).items(), depth)) for qid, hits in run.items()}


def _row(
    model: ElasticModel,
    level: Level,
    data: RetrievalData,
    index: PassageIndex,
    batch_size: int,
    matcher: AnswerMatcher | None,
) -> Row:
    queries = model.embed(data.queries, level=level, batch_size=batch_size, show_progress=True).numpy()
    run = first_stage(data, data.query_ids, queries, index, metrics.DEPTH)
    values: dict[str, np.ndarray] = {}
    if matcher is None:
        values |= metrics.per_query(data.qrels, run)
    elif data.judged:
        values |= _of_some(data, data.judged, run, metrics.RETRIEVAL_MEASURES)
    if matcher is not None:
        values |= matcher.success(run)
    if data.candidates:
        values |= _rerank(queries, data, index)
    return Row(run, values)


def _of_some(data: RetrievalData, qrels: Qrels, run: metrics.Run, measures: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each measure's values [queries of the set]; NaN for queries that are not in ``qrels``."""
    place = {qid: i for i, qid in enumerate(data.query_ids)}
    values = {measure: np.full(len(data.query_ids), np.nan) for measure in measures}
    if qrels:
        for measure, found in metrics.per_query(qrels, run, measures).items():
            values[measure][[place[qid] for qid in qrels]] = found
    return values


def _rerank(queries: np.ndarray, data: RetrievalData, index: PassageIndex) -> dict[str, np.ndarray]:
    """RR and AP of each query's own candidates; NaN where it has none or none of them is right."""
    candidates = {qid: grades for qid, grades in (data.candidates or {}).items() if any(g > 0 for g in grades.values())}
    place = {qid: i for i, qid in enumerate(data.query_ids)}
    run = {
        qid: dict(
            zip(grades, (index.vectors(index.ids.rows(list(grades))) @ queries[place[qid]]).tolist(), strict=True)
        )
        for qid, grades in candidates.items()
    }
    return _of_some(data, candidates, run, metrics.CANDIDATE_MEASURES)


def _shares_passages(model: ElasticModel, teachers_encoder: ElasticModel) -> bool:
    """Whether the artifact's passages are encoded by what encodes the teacher's."""
    passages = model.config.passages
    return passages.encoder == "teacher" and teachers_encoder.has_fingerprint(passages.fingerprint)
