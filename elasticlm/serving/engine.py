"""Answer batches of accepted requests: tokenise, choose a level, run it, convert the outputs.

This module does not depend on a server; elasticlm.handlers adapts it to TorchServe.
"""

import itertools
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from elasticlm.errors import InputError
from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Choice, Level
from elasticlm.model.tokenizing import Tokenized
from elasticlm.schedule.latency import LatencyTable, Setup, choose_setup
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Policy, decide
from elasticlm.schedule.profiling import measure
from elasticlm.schedule.typical import TypicalRequest
from elasticlm.serving.bundle import Bundle
from elasticlm.serving.int8_check import check_int8
from elasticlm.serving.requests import (
    LATE,
    Classify,
    Embed,
    EmbedMany,
    Request,
    RequestError,
    Score,
    Search,
    Service,
    rows_of,
)
from elasticlm.serving.settings import Settings
from elasticlm.serving.stages import Stages

logger = logging.getLogger(__name__)

PROFILE_RUNS = 5
"""Runs per level and cell with `profile_on_start`, and number of searches timed at startup."""
SEARCHED = 10
"""Number of hits in each timed search."""


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        body: the JSON object; vectors and scores in it are NumPy arrays, see elasticlm.serving.responses.
        level: the level that produced the answer; a pair of levels in a two-stage archive.
        largest_ms: this request's share of the time that the batch would take at the largest level.
        expected_ms: its share of the time that the batch takes at the level that ran, according to the latency table.
        tokens: tokens of its texts as the model read them, special tokens included; 0 if not counted.
    """

    body: dict[str, Any]
    level: Choice
    largest_ms: float = 0.0
    expected_ms: float = 0.0
    tokens: int = 0


class Engine(Protocol):
    """Answers batches of accepted requests: an Answerer, or elasticlm.serving.two_stage.TwoStageAnswerer.

    Attributes:
        service: the kinds of requests that it answers.
        table_stages: the stages of ``answer`` whose time the latency table contains.
        row_ms: time of one short row at the largest level.
        int8_fallbacks: number of levels that run in fp32 because int8 is too inaccurate on this machine.
    """

    table_stages: frozenset[str]
    int8_fallbacks: int

    @property
    def service(self) -> Service: ...

    @property
    def row_ms(self) -> float: ...

    def adopt(self, settings: Settings) -> None: ...

    def answer(
        self, requests: Sequence[Request], load: Load, stages: Stages | None = None
    ) -> Sequence[Answer | RequestError]: ...


class Answerer:
    """Answers requests with the model, latency table, policy and index of one archive.

    Args:
        folder: an unpacked archive, see elasticlm.serving.bundle.
        settings: the handler's settings.

    Raises InputError if the parts do not fit together.
    """

    table_stages = frozenset({"tokenize", "forward", "convert"})

    def __init__(self, folder: Path, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        bundle = Bundle(folder)
        self.model, self.table, self.int8_fallbacks = load_with_latency(bundle.artifact, settings)
        self._typical = TypicalRequest()
        self.adopt(settings)
        self.index = load_index(bundle.index, self.model, settings.threads)
        self.service = Service(
            task=self.model.config.task,
            encodes_passages=self.model.encodes_passages,
            has_index=self.index is not None,
        )
        self.table = warmed_up(self.model, self.table, settings)
        self.search_ms = 0.0
        if self.index is not None:
            warm = self.model.embed(["warm"] * PROFILE_RUNS, level=self.model.structures.smallest).numpy()
            self.search_ms = self.index.time_search(warm, SEARCHED)

    @property
    def row_ms(self) -> float:
        """Time of one short row at the largest level."""
        return self.table.mean_ms(self.model.structures.largest)

    def adopt(self, settings: Settings) -> None:
        """Switch to the policy of these settings. Raises InputError if the policy needs a level that does not exist."""
        policy: Policy = settings.parsed_policy()
        policy.check(self.model.levels)
        self.policy, self.late = policy, settings.late

    def answer(
        self, requests: Sequence[Request], load: Load, stages: Stages | None = None
    ) -> list[Answer | RequestError]:
        """Return what becomes of each request of a batch, in order: its answer, or the reason why it is refused.

        The whole batch runs at one level, which the policy chooses. Passages are the exception: they always run at the
        largest level, so that passage vectors do not depend on the load. Their time counts as overhead in the choice,
        and as turnaround for those that are expected among the waiting requests.

        Args:
            load: what is known about the queue; this method fills in rows, tokens and batch, and adds to overhead_ms.
            stages: records the time of each stage.
        """
        stages = stages or Stages()
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(_kind(request), []).append(i)
        inputs = {kind: self._tokenise(kind, [requests[i] for i in group]) for kind, group in groups.items()}
        stages.done("tokenize")
        shapes = {kind: self.model.counted(tokenised) for kind, tokenised in inputs.items()}
        level, refused = self._decide(requests, shapes, load)
        stages.done("decide")
        outcomes: dict[int, Answer | RequestError] = {i: late_error(load, i) for i in refused}
        for kind, group in groups.items():
            at = self.model.structures.largest if kind == "passage" else level
            kept = [i for i in group if i not in refused]
            if 0 < len(kept) < len(group):
                inputs[kind] = self._tokenise(kind, [requests[i] for i in kept])
                stages.done("tokenize")
            if kept:
                outcomes |= zip(kept, self._run([requests[i] for i in kept], inputs[kind], at, stages), strict=True)
                stages.done("convert")
        return [outcomes[i] for i in range(len(requests))]

    def _decide(
        self, requests: Sequence[Request], shapes: Mapping[str, Sequence[int]], load: Load
    ) -> tuple[Level, set[int]]:
        """Return the level for the elastic part of a batch and the requests of it that are refused.

        Args:
            shapes: (rows, tokens) of each group.
        """
        elastic = [i for i, request in enumerate(requests) if _kind(request) != "passage"]
        largest = self.model.structures.largest
        passages_ms = self.table.mean_ms(largest, *shapes["passage"]) if "passage" in shapes else 0.0
        self._typical.saw_fixed(len(requests), passages_ms)
        if not elastic:
            return largest, set()
        fixed_ms = passages_ms + self.search_ms * sum(isinstance(request, Search) for request in requests)
        counted = [shape for kind, shape in shapes.items() if kind != "passage"]
        rows, tokens = sum(rows for rows, _ in counted), max(tokens for _, tokens in counted)
        self._typical.saw(len(elastic), rows=rows, tokens=tokens)
        load = replace(
            load.of_requests(elastic), rows=rows, tokens=tokens, overhead_ms=load.overhead_ms + fixed_ms,
            waiting_rows=load.waiting_rows or self._typical.rows, waiting_tokens=self._typical.tokens,
            turnaround_ms=load.turnaround_ms + load.batch_size * self._typical.fixed_ms,
        )  # fmt: skip
        decision = decide(self.policy, self.table, load, self.late)
        return decision.level, {elastic[i] for i in decision.refused}

    def _tokenise(self, kind: str, requests: Sequence[Request]) -> Tokenized:
        """Tokenise requests of one kind, with one row per text or pair."""
        if kind in ("query", "passage"):
            texts = [text for request in requests for text in _single_texts(request)]
            return self.model.tokenize(texts, kind)  # type: ignore[arg-type]
        pairs = [pair for request in requests for pair in _pairs(request)]
        firsts, seconds = map(list, zip(*pairs, strict=True))
        return self.model.tokenize_pairs(firsts, seconds if kind == "pair" else None)

    def _run(self, requests: Sequence[Request], inputs: Tokenized, level: Level, stages: Stages) -> Iterator[Answer]:
        """Yield the requests' answers at a level; `inputs` holds their rows one after another."""
        outputs = self.model.encode(inputs, level).float().cpu()
        stages.done("forward")
        largest_ms, expected_ms = (self.table.mean_ms(each, *self.model.counted(inputs)) / len(requests)
                                   for each in (self.model.structures.largest, level))  # fmt: skip
        hits = self._search(requests, outputs)
        stages.done("search")
        truncated, tokens = inputs.cut, inputs["attention_mask"].sum(1)
        row = 0
        for request in requests:
            rows = rows_of(request)
            body = self._body(request, outputs[row : row + rows], hits, level) | {"level": level}
            if any(truncated[row : row + rows]):
                body["truncated"] = True
            yield Answer(body, level, largest_ms, expected_ms, int(tokens[row : row + rows].sum()))
            row += rows

    def _body(
        self, request: Request, outputs: Tensor, hits: Iterator[list[dict[str, Any]]], level: Level
    ) -> dict[str, Any]:
        match request:
            case Embed():
                return {"embedding": outputs[0].numpy()}
            case EmbedMany():
                return {"embeddings": outputs.numpy()}
            case Search(k=k):
                return {"hits": next(hits)[:k]}
            case Score():
                likely = self.model.probabilities(outputs, level)
                return {"scores": outputs.numpy()} | ({} if likely is None else {"probabilities": likely.numpy()})
            case Classify():
                labels = self.model.config.labels
                scores = outputs[0].softmax(-1) if len(labels) > 1 else outputs[0]  # one label: a regression
                return {
                    "label": labels[int(scores.argmax())],
                    "scores": dict(zip(labels, scores.tolist(), strict=True)),
                }

    def _search(self, requests: Sequence[Request], vectors: Tensor) -> Iterator[list[dict[str, Any]]]:
        """Return the hits of every search among the requests, computed in one call to the index."""
        rows_before = itertools.accumulate(map(rows_of, requests), initial=0)
        searches = [(row, request.k) for row, request in zip(rows_before, requests, strict=False)
                    if isinstance(request, Search)]  # fmt: skip
        if not searches:
            return iter(())
        assert self.index is not None  # refuse_unserved() rejects searches if there is no index
        rows, ks = zip(*searches, strict=True)
        scores, ids = self.index.search(vectors[list(rows)].numpy(), max(ks))
        return iter(
            [{"id": i, "score": s} for i, s in zip(*hits, strict=False)]  # an approximate index may find fewer than k
            for hits in zip(ids, scores.tolist(), strict=True)
        )


def late_error(load: Load, i: int) -> RequestError:
    """Return the refusal of a request that cannot be answered in time any more."""
    age_ms, budget_ms = load.ages_ms[i] or 0.0, load.budgets_ms[i] if load.budgets_ms else load.budget_ms
    message = f"waited {age_ms:.0f} ms and cannot be answered within its budget of {budget_ms:g} ms"
    return RequestError("late", message, LATE)


def _kind(request: Request) -> str:
    """Return the group of requests that can share a forward pass: query, passage, pair, or single (sentence)."""
    match request:
        case Embed(kind=kind) | EmbedMany(kind=kind):
            return kind
        case Search():
            return "query"
        case Classify(sentence2=None):
            return "single"
        case _:
            return "pair"


def _single_texts(request: Request) -> Sequence[str]:
    match request:
        case Embed(text=text) | Search(query=text):
            return [text]
        case EmbedMany(texts=texts):
            return texts
        case _:
            raise TypeError(f"{type(request).__name__} has no texts of its own")


def _pairs(request: Request) -> list[tuple[str, str | None]]:
    match request:
        case Score(query=query, passages=passages):
            return [(query, passage) for passage in passages]
        case Classify(sentence1=first, sentence2=second):
            return [(first, second)]
        case _:
            raise TypeError(f"{type(request).__name__} is no pair")


def load_with_latency(artifact: Path, settings: Settings) -> tuple[ElasticModel, LatencyTable, int]:
    """Load an artifact and the latency table that the policy uses. Raises InputError if they do not fit together.

    The number is that of levels which run in fp32 because int8 is too inaccurate on this machine.
    """
    table, setup = choose_setup(
        artifact, threads=settings.threads, backend=settings.backend, precision=settings.precision
    )
    model = ElasticModel.from_pretrained(
        artifact, backend=setup.backend, precision=setup.precision, threads=settings.threads
    )
    table.check_levels(model.levels)
    warn_if_stale(artifact / LATENCY_FILE, table, setup)
    table, int8_fallbacks = check_int8(model, table, artifact, settings.threads)
    return model, table, int8_fallbacks


def warmed_up(model: ElasticModel, table: LatencyTable, settings: Settings) -> LatencyTable:
    """Apply the length limits of the settings and run every level once, so that no request pays for warm-up.

    Every level runs at the smallest and the largest cell of the table. Returns the table, scaled to this machine if
    ``profile_on_start`` is set. Raises InputError if a level returns values that are not finite.
    """
    limits = model.config.max_tokens
    shorter = {kind: min(limits.of(kind), settings.max_tokens or limits.of(kind)) for kind in ("query", "pair")}
    model.config.max_tokens = limits = replace(limits, **shorter)
    for rows, tokens in {(table.rows[0], table.tokens[0]), (table.rows[-1], table.tokens[-1])}:
        ids = torch.full(
            (rows, min(tokens, max(limits.query, limits.passage, limits.pair))), model.tokenizer.unk_token_id
        )
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for level in model.levels:
            if not model.encode(inputs, level).isfinite().all():
                raise InputError(
                    f"level {level} returns values that are not finite: check whether the weights are damaged"
                )
    return rescaled(table, model, settings.threads) if settings.profile_on_start else table


def warn_if_stale(file: Path, table: LatencyTable, here: Setup) -> None:
    """Log a warning if the table was measured on another machine or in another setup than the current one."""
    setups = ((name, getattr(table.setup, name), getattr(here, name)) for name in Setup.__dataclass_fields__)
    differences = [f"{name} {then}, here {now}" for name, (then, now) in table.differences_from(machine(())).items()]
    differences += [f"{name} {then}, here {now}" for name, then, now in setups if then != now]
    if differences:
        logger.warning(
            "STALE LATENCY TABLE: %s was measured with %s. Levels are chosen by service times of another setup: run "
            "`elasticlm profile` on this machine, or set profile_on_start: true",
            file, "; ".join(differences),
        )  # fmt: skip


def rescaled(table: LatencyTable, model: ElasticModel, threads: int) -> LatencyTable:
    """Return the table with each level scaled to a few runs on this machine at the smallest and the largest cell."""
    ratios: dict[Level, list[float]] = {level: [] for level in table.levels}
    for rows, tokens in ((table.rows[0], table.tokens[0]), (table.rows[-1], table.tokens[-1])):
        now = measure(
            model, levels=table.levels, rows=[rows], tokens=[tokens], threads=threads, seconds=0, min_runs=PROFILE_RUNS
        )
        for cell in now.cells:
            ratios[cell.level].append(cell.p50_ms / table.mean_ms(cell.level, cell.rows, cell.tokens))
    factors = {level: statistics.geometric_mean(both) for level, both in ratios.items()}
    return table.scaled(factors, "rescaled at start")


def load_index(folder: Path | None, model: ElasticModel, threads: int) -> Any:
    """Return the archive's index, checked against the artifact; None if the archive has no index."""
    if folder is None:
        return None
    import faiss

    from elasticlm.retrieval.passage_index import PassageIndex

    faiss.omp_set_num_threads(threads)
    index = PassageIndex.load(folder, memory_mapped=True)  # workers share its pages
    index.check(model)
    return index
