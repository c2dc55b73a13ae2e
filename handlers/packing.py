"""Pack an archive: read and check its parts, fill in its settings, and run torch-model-archiver."""

import argparse
import bisect
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from elasticlm.backend import PRECISIONS, onnx_export
from elasticlm.command import print_result, print_table, say
from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.handlers.torchserve_settings import read_handler_section
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import GRAPHS_FOLDER, LATENCY_FILE
from elasticlm.model.structure import Choice, level_name
from elasticlm.model.teacher import passage_encoder
from elasticlm.retrieval.data_specs import load_corpus
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.admission import queue_bound
from elasticlm.schedule.cascade import PairTable, read_pairs
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import Policy, parse_policy
from elasticlm.schedule.table import ChoiceT, Table
from elasticlm.serving import bundle
from elasticlm.serving.bundle import SecondStage
from elasticlm.serving.cascade_times import pair_table
from elasticlm.serving.settings import Settings

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE / "model-config.yaml"
SERVER_SETTINGS = HERE / "config.properties"
BUDGET_IN_SERVICE_TIMES = 5
"""The default latency budget, in service times of the largest level."""
TURNAROUND_MS = 3.0
"""TorchServe's usual time from one batch to the next beyond the service time."""
MOST_ROWS = 1000
"""Maximum number of texts or passages per request, whatever the budget."""
BYTES_PER_TOKEN = 8
"""Bytes of a request body per token of its texts, for a limit that no reasonable request reaches."""
SERVERS_MOST_BYTES = 1 << 20
"""max_request_size of config.properties."""
LEAST_RESPONSE_TIMEOUT_S, RESPONSE_TIMEOUT_IN_BUDGETS = 30, 20
"""After this time TorchServe restarts a worker that does not respond; meanwhile all requests wait."""
LIST_ROWS, LIST_TOKENS = 8, 128
"""A typical request of a reranker: number of passages, and tokens per pair."""


def make_archive(options: argparse.Namespace, target: Path) -> None:
    """Pack the archive that the options describe into ``target``, and print the service times of its levels.

    Raises InputError if a part of it could not be served.
    """
    artifact = Path(options.model)
    model, table = read_artifact(artifact, options.backend, options.precision)
    setup = table.setup
    if setup.backend == "onnx":
        onnx_export.ensure_exported(model, artifact, setup.precision)
    if options.passages == "largest" and not model.encodes_passages:
        raise InputError(f"--passages largest: the passages of {artifact} are encoded by its teacher")
    index = read_index(options, model) if options.index else None
    second: SecondStage | None = None
    times: Table[Any] = table
    levels: Sequence[Choice] = model.levels
    if options.reranker or options.pairs:
        second, pair_times = read_second_stage(options, model, table, index)
        times, levels = pair_times, pair_times.levels
    rows, tokens = (LIST_ROWS, LIST_TOKENS) if model.config.task == "score" else (1, table.tokens[0])
    tokens = options.tokens or tokens
    policy, default_ms = chosen_policy(options.policy, levels, times, options.batch_size * rows, tokens)
    schedule = {"latency_budget_ms": default_ms} | policy.settings()
    budget_ms = policy.budget_ms or default_ms
    waiting = queue_bound(
        times, policy.smallest(levels), budget_ms=budget_ms,
        batch_size=options.batch_size, workers=options.workers, rows=rows, tokens=tokens,
        overhead_ms=Settings.overhead_ms, turnaround_ms=TURNAROUND_MS,
    )  # fmt: skip
    if second:
        limits = {"max_k": min(pair.depth for pair in second.pairs)}  # hits that every pair can return
    else:
        most = most_rows(times, policy.smallest(levels), budget_ms - Settings.overhead_ms, tokens)
        needed = most * model.config.max_tokens.pair * BYTES_PER_TOKEN
        most_bytes = min(max(Settings.max_body_bytes, needed), SERVERS_MOST_BYTES)
        limits = {"max_passages" if model.config.task == "score" else "max_texts": most, "max_body_bytes": most_bytes}
    config = fill(TEMPLATE.read_text(encoding="utf-8"), {
        "minWorkers": options.workers, "maxWorkers": options.workers, "batchSize": options.batch_size,
        "maxBatchDelay": options.max_batch_delay_ms, "jobQueueSize": waiting, "threads": setup.threads,
        "backend": setup.backend, "precision": setup.precision, "passages": options.passages, **schedule, **limits,
        "responseTimeout": max(LEAST_RESPONSE_TIMEOUT_S, math.ceil(RESPONSE_TIMEOUT_IN_BUDGETS * budget_ms / 1000)),
    })  # fmt: skip
    read_handler_section(yaml.safe_load(config)["handler"])
    with new_file(target, overwrite=options.overwrite) as temporary:
        pack(options.name, artifact, index, config, temporary, second)

    server_settings = target.parent / SERVER_SETTINGS.name
    if not server_settings.exists():
        shutil.copyfile(SERVER_SETTINGS, server_settings)
        say(f"{server_settings}: wrote the settings of a local TorchServe (for --ts-config)")

    print_table([{"level": level_name(level), "mean ms": times.mean_ms(level, rows, tokens),
                  "p95 ms": times.p95_ms(level, rows, tokens)} for level in levels])  # fmt: skip
    print_result({"archive": str(target), "name": options.name, "bytes": target.stat().st_size,
                  "backend": setup.backend, "precision": setup.precision, **schedule, "jobQueueSize": waiting,
                  "levels": [str(level) for level in levels] if second else list(levels),
                  "index": len(index) if index else 0})  # fmt: skip


def read_artifact(
    folder: Path, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> tuple[ElasticModel, LatencyTable]:
    """Load an artifact and its fastest latency table that matches the backend, precision and threads.

    Raises InputError if the artifact could not be served.
    """
    model = ElasticModel.from_pretrained(folder)
    file = folder / LATENCY_FILE
    if not file.is_file():
        raise InputError(f"{file}: no latency table; measure one with `elasticlm profile --model {folder}`")
    table = LatencyTable.read(file, backend=backend, precision=precision, threads=threads)
    try:
        table.check_levels(model.levels)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return model, table


def read_index(options: argparse.Namespace, model: ElasticModel) -> PassageIndex:
    """Load the index. Raises InputError unless its passages were encoded by the encoder that the artifact expects.

    An index made by other software has no fingerprint. To check it, 16 of its passages, looked up by id in --data, are
    encoded again.
    """

    if model.config.task != "embed":
        raise InputError(f"--index {options.index}: a model whose task is {model.config.task!r} does not search")
    index = PassageIndex.load(options.index, options.ids)
    corpora = (lambda: [load_corpus(options.data)]) if options.data else None
    index.check_against(model, lambda: passage_encoder(model, options.teacher), corpora)
    return index


def read_second_stage(
    options: argparse.Namespace, retriever: ElasticModel, table: LatencyTable, index: PassageIndex | None
) -> tuple[SecondStage, PairTable]:
    """Load the reranker, the pairs of levels and the passages. Raises InputError if the parts do not fit together.

    The reranker must have been measured with the backend, precision and threads with which the retriever is served.
    """

    if index is None or not (options.reranker and options.pairs and options.data):
        raise InputError(
            "a two-stage archive needs all of --reranker, --pairs, --index and --data (the corpus of the index)"
        )
    setup = table.setup
    reranker, reranker_table = read_artifact(Path(options.reranker), setup.backend, setup.precision, setup.threads)
    if reranker.config.task != "score":
        raise InputError(f"--reranker {options.reranker}: its task is {reranker.config.task!r}, not ranking ('score')")
    if setup.backend == "onnx":
        onnx_export.ensure_exported(reranker, Path(options.reranker), setup.precision)
    pairs = read_pairs(options.pairs)
    for stage, model in (("retriever", retriever), ("reranker", reranker)):
        used = {getattr(pair, stage) for pair in pairs} - {None}
        if unknown := used - set(model.levels):
            offered = ", ".join(map(level_name, model.levels))
            raise InputError(f"{options.pairs}: the {stage} has no level {level_name(max(unknown))}, only {offered}")
    corpus = load_corpus(options.data)
    texts = dict(zip(corpus.ids, corpus.passages, strict=True))
    if missing := [pid for pid in index.ids if pid not in texts]:
        raise InputError(f"--data {options.data}: {len(missing):,} of the index's {len(index):,} passages are not in "
                         f"it, such as {missing[0]!r}")  # fmt: skip
    passages = [texts[pid] for pid in index.ids]
    times = pair_table(pairs, (retriever, table), (reranker, reranker_table), index, passages, backend=setup.backend)
    worth_running = [times[levels] for levels in times.levels]
    return SecondStage(Path(options.reranker), worth_running, passages), times


def chosen_policy(
    policy: str | None, levels: Sequence[Choice], table: Table, rows: int, tokens: int
) -> tuple[Policy, float]:
    """Return the policy of the command line, and the default latency budget in ms.

    Args:
        policy: the option --policy; None for the default policy.
        levels: the levels of the archive, largest first.
        rows, tokens: shape of a full batch of typical requests.
    """
    largest = levels[0]
    service_ms = table.mean_ms(largest, rows, tokens)
    budget_ms = round_up(BUDGET_IN_SERVICE_TIMES * service_ms)
    if policy is None or "t=" not in policy:
        say(
            f"latency budget: {budget_ms:g} ms, {BUDGET_IN_SERVICE_TIMES} times the {service_ms:.3g} ms of level "
            f"{level_name(largest)} at {rows} x {tokens} tokens; choose another with --policy deadline:t=MS"
        )
    try:
        chosen = parse_policy(policy or "deadline", default_budget_ms=budget_ms)
    except InputError as error:
        raise InputError(f"--policy: {error}") from None
    try:
        chosen.check(levels)
    except InputError as error:
        raise InputError(f"--policy: {error}") from None
    return chosen, budget_ms


def most_rows(table: Table[ChoiceT], level: ChoiceT, available_ms: float, tokens: float) -> int:
    """Return how many texts or passages of a typical length the level answers in the available time, 1 to MOST_ROWS.

    >>> table = LatencyTable.from_means({10: 5.0})
    >>> [most_rows(table, 10, ms, 16) for ms in (52.0, 3.0, 1e9)]
    [10, 1, 1000]
    """
    counts = range(1, MOST_ROWS + 1)
    return max(1, bisect.bisect_right(counts, available_ms, key=lambda rows: table.mean_ms(level, rows, tokens)))


def round_up(ms: float) -> float:
    """Round a budget up to two significant digits.

    >>> round_up(51.3), round_up(251.0), round_up(3.21)
    (52.0, 260.0, 3.3)
    """
    step = 10.0 ** (len(str(int(ms))) - 2)
    return round(-(-ms // step) * step, 3)


def fill(template: str, settings: Mapping[str, Any]) -> str:
    """Return model-config.yaml with these settings filled in and its comments kept; the template must have them all."""
    for name, value in settings.items():
        line = re.compile(rf"^(?P<name>\s*{name}:)[ ]*[^#\n]*?(?P<comment>[ ]*#.*)?$", re.MULTILINE)
        template, count = line.subn(rf"\g<name> {value}\g<comment>", template)
        assert count == 1, f"{name} occurs {count} times in {TEMPLATE.name}"
    return template


def pack(
    name: str,
    artifact: Path,
    index: PassageIndex | None,
    config: str,
    target: Path,
    second: SecondStage | None = None,
) -> None:
    """Write the archive with torch-model-archiver.

    torch-model-archiver assembles the archive in TMPDIR/NAME and deletes an existing folder of that name, so it gets a
    separate TMPDIR.
    """
    with tempfile.TemporaryDirectory() as folder:
        staged, packed = Path(folder, "staged"), Path(folder, "packed")
        for part in ("tmp", "packed", "staged"):
            Path(folder, part).mkdir()
        bundle.stage(staged, artifact, adapter=HERE, index=index, second=second, left_out=_graphs_left_out(config))
        config_file = Path(folder, TEMPLATE.name)
        config_file.write_text(config, encoding="utf-8")
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name, "--version", "1.0",
                   "--handler", HERE / "elastic_handler.py", "--extra-files", staged, "--config-file", config_file,
                   "--export-path", packed, "--archive-format", "zip-store"]  # fmt: skip
        finished = subprocess.run(
            [str(part) for part in command],
            env=os.environ | {"TMPDIR": str(Path(folder, "tmp"))},
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            raise InputError(f"torch-model-archiver: {(finished.stderr.strip() or 'failed').splitlines()[-1]}")
        shutil.move(packed / f"{name}.mar", target)


def _graphs_left_out(config: str) -> list[str]:
    """Return the names of the ONNX graph folders that these settings never use; with auto, all may be used."""
    handler = yaml.safe_load(config)["handler"]
    backend, precision = handler.get("backend", "auto"), handler.get("precision", "auto")
    if backend == "torch":
        return [GRAPHS_FOLDER]
    return [name for name in PRECISIONS["onnx"] if precision not in ("auto", name)]
