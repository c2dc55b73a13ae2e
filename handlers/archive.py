"""Pack an artifact, the code that serves it and, where there is one, its index into an archive for TorchServe.

    elasticlm archive --model out/aligned --name mini --output model_store/

The archive holds elastic_handler.py, the packages `elasticlm` and `handlers`, `artifact/`, `index/` and
model-config.yaml: nothing of the checkout is needed where it is served. What could not be served is refused here.

With a reranker behind the retriever, searches are reranked; `reranker/`, `passages/` and pairs.json come along:

    elasticlm archive --model out/retriever --index out/index --reranker out/reranker --pairs out/pairs.json \\
        --data beir:squad --name search --output model_store/
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import elasticlm
from elasticlm.__main__ import run_in_checkout
from elasticlm.backend import BACKENDS, PRECISIONS, onnx_export
from elasticlm.backend.onnx_runtime import FOLDER as GRAPHS_FOLDER
from elasticlm.command import parser, print_result, print_table, say
from elasticlm.errors import InputError
from elasticlm.files import new_file, refuse_existing
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Choice, level_name
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.schedule.cascade import PAIRS_FILE, MeasuredPair, PairTable, read_pairs, write_pairs
from elasticlm.schedule.latency import LatencyTable, fastest, read_tables
from elasticlm.schedule.policies import Fixed, Table, parse_policy
from elasticlm.serving.cascade_times import PASSAGES_FOLDER, RERANKER_FOLDER, pair_table
from elasticlm.serving.settings import Settings

if TYPE_CHECKING:
    from elasticlm.retrieval.passage_index import PassageIndex

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE / "model-config.yaml"
BUDGET_IN_SERVICE_TIMES = 5
"""The default latency budget: so many times the service time of the largest level."""
LIST_ROWS, LIST_TOKENS = 8, 128
"""What a reranker is asked for, where that budget is found: passages of a list, tokens of a pair."""


def main(argv: list[str] | None = None) -> None:
    options = _options().parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", options.name):
        raise InputError(f"--name {options.name!r}: letters, digits, '_', '-' and '.' only; it becomes part of the URL")
    target = Path(options.output) / f"{options.name}.mar"
    refuse_existing(target, overwrite=options.overwrite)

    artifact = Path(options.model)
    model, table = read_artifact(artifact, options.backend, options.precision)
    setup = table.setup
    if setup.backend == "onnx":
        onnx_export.ensure_exported(model, artifact, setup.precision)
    index = read_index(options, model) if options.index else None
    second = read_second_stage(options, model, table, index) if options.reranker or options.pairs else None
    times: Table = second.table if second else table
    levels: Sequence[Choice] = second.table.levels if second else model.levels
    rows, tokens = (LIST_ROWS, LIST_TOKENS) if model.config.task == "score" else (1, table.tokens[0])
    schedule = schedule_settings(options.policy, levels, times, options.batch_size * rows, tokens)
    config = fill(TEMPLATE.read_text(encoding="utf-8"), {
        "minWorkers": options.workers, "maxWorkers": options.workers, "batchSize": options.batch_size,
        "maxBatchDelay": options.max_batch_delay_ms, "threads": setup.threads, "backend": setup.backend,
        "precision": setup.precision, **schedule, **({"max_k": second.depth} if second else {}),
    })  # fmt: skip
    Settings.from_section(yaml.safe_load(config)["handler"])
    with new_file(target, overwrite=options.overwrite) as temporary:
        pack(options.name, artifact, index, config, temporary, second)

    print_table([{"level": level_name(level), "mean ms": times.mean_ms(level, rows, tokens),
                  "p95 ms": times.p95_ms(level, rows, tokens)} for level in levels])  # fmt: skip
    print_result({"archive": str(target), "name": options.name, "bytes": target.stat().st_size,
                  "backend": setup.backend, "precision": setup.precision, **schedule,
                  "levels": [str(level) for level in levels] if second else list(levels),
                  "index": len(index) if index else 0})  # fmt: skip


@dataclass(frozen=True)
class SecondStage:
    """What makes a pipeline of an archive that searches.

    Args:
        reranker: artifact folder.
        table: its levels are the pairs worth running.
        passages: texts of the index's passages, in its order.
    """

    reranker: Path
    table: PairTable
    passages: Sequence[str]

    @property
    def pairs(self) -> list[MeasuredPair]:
        """The pairs worth running, best first."""
        return [self.table[levels] for levels in self.table.levels]

    @property
    def depth(self) -> int:
        """How many hits every pair can give."""
        return min(pair.depth for pair in self.pairs)


def read_artifact(
    folder: Path, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> tuple[ElasticModel, LatencyTable]:
    """Load an artifact and its latency table for a backend, precision and threads; of what is left open, the fastest.

    Raises InputError unless it could be served as it is.
    """
    model = ElasticModel.from_pretrained(folder)
    file = folder / LATENCY_FILE
    if not file.is_file():
        raise InputError(f"{file}: no latency table; measure one with `elasticlm profile --model {folder}`")
    tables = [table for table in read_tables(file)
              if backend in ("auto", table.setup.backend) and precision in ("auto", table.setup.precision)
              and threads in (None, table.setup.threads)]  # fmt: skip
    if not tables:
        asked = [name for name in (backend, precision) if name != "auto"] + [f"{threads} threads"] * bool(threads)
        raise InputError(
            f"{file}: nothing was measured for {' '.join(asked)}; run `elasticlm profile --model {folder}`"
        )
    table = fastest(tables)
    try:
        table.check_levels(model.levels)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return model, table


def read_index(options: argparse.Namespace, model: ElasticModel) -> "PassageIndex":
    """Load the index; raises InputError unless its passages were encoded as this artifact wants them.

    An index made elsewhere has no fingerprint: 16 of its passages, found by id in --data, are encoded anew.
    """
    from elasticlm.model.teacher import passage_encoder
    from elasticlm.retrieval.data_specs import load_corpus
    from elasticlm.retrieval.passage_index import PassageIndex

    if model.config.task != "embed":
        raise InputError(f"--index {options.index}: a model whose task is {model.config.task!r} does not search")
    index = PassageIndex.load(options.index, options.ids)
    index.check(model)
    if index.fingerprint is None:
        if not options.data:
            raise InputError(f"--index {options.index}: made elsewhere (no fingerprint); give its corpus with "
                             "--data SPEC, so that some of its passages can be compared")  # fmt: skip
        corpus, encoder = load_corpus(options.data), passage_encoder(model, options.teacher)
        passages = dict(zip(corpus.ids, corpus.passages, strict=True))
        index.check_sample(passages, lambda texts: encoder.embed(texts, kind="passage").numpy())
        index.fingerprint = encoder.fingerprint()
    return index


def read_second_stage(
    options: argparse.Namespace, retriever: ElasticModel, table: LatencyTable, index: "PassageIndex | None"
) -> SecondStage:
    """Load what reranks the retriever's hits; raises InputError where the parts do not fit together.

    The reranker is served as the retriever is: it must have been measured with the same backend, precision and threads.
    """
    from elasticlm.retrieval.data_specs import load_corpus

    if index is None or not (options.reranker and options.pairs and options.data):
        raise InputError(
            "a reranker reranks what a search finds: give --reranker, --pairs, --index and --data (its corpus)"
        )
    setup = table.setup
    reranker, reranker_table = read_artifact(Path(options.reranker), setup.backend, setup.precision, setup.threads)
    if reranker.config.task != "score":
        raise InputError(f"--reranker {options.reranker}: its task is {reranker.config.task!r}, not ranking ('score')")
    if setup.backend == "onnx":
        onnx_export.ensure_exported(reranker, Path(options.reranker), setup.precision)
    pairs = read_pairs(options.pairs)
    for stage, model in (("retriever", retriever), ("reranker", reranker)):
        wanted = {getattr(pair, stage) for pair in pairs} - {None}
        if unknown := wanted - set(model.levels):
            known = ", ".join(map(level_name, model.levels))
            raise InputError(f"{options.pairs}: the {stage} has no level {level_name(max(unknown))}, only {known}")
    corpus = load_corpus(options.data)
    texts = dict(zip(corpus.ids, corpus.passages, strict=True))
    if missing := [pid for pid in index.ids if pid not in texts]:
        raise InputError(f"--data {options.data}: {len(missing):,} of the index's {len(index):,} passages are not in "
                         f"it, such as {missing[0]!r}")  # fmt: skip
    passages = [texts[pid] for pid in index.ids]
    times = pair_table(pairs, (retriever, table), (reranker, reranker_table), index, passages, backend=setup.backend)
    return SecondStage(Path(options.reranker), times, passages)


def schedule_settings(
    policy: str | None, levels: Sequence[Choice], table: Table, rows: int, tokens: int
) -> dict[str, Any]:
    """Return the settings latency_budget_ms, policy and alpha for a policy as it was given, or for none.

    Args:
        levels: what is served, largest first.
        rows, tokens: of a full batch of usual requests.
    """
    largest = levels[0]
    service_ms = table.mean_ms(largest, rows, tokens)
    budget_ms = round_up(BUDGET_IN_SERVICE_TIMES * service_ms)
    if policy is None or "t=" not in policy:
        say(
            f"latency budget: {budget_ms:g} ms, {BUDGET_IN_SERVICE_TIMES} times the {service_ms:.3g} ms of level "
            f"{level_name(largest)} at {rows} x {tokens} tokens; choose another with --policy slack:t=MS"
        )
    try:
        chosen = parse_policy(policy or "slack", default_budget_ms=budget_ms)
    except InputError as error:
        raise InputError(f"--policy: {error}") from None
    if isinstance(chosen, Fixed) and chosen.level not in levels:
        raise InputError(f"--policy: level {chosen.level} is not among the levels {', '.join(map(level_name, levels))}")
    settings = {"latency_budget_ms": getattr(chosen, "budget_ms", budget_ms)}
    settings["policy"] = str(chosen) if isinstance(chosen, Fixed) else str(chosen).partition(":")[0]
    if alpha := getattr(chosen, "alpha", None):
        settings["alpha"] = alpha
    return settings


def round_up(ms: float) -> float:
    """Round up to two digits: budgets are round numbers.

    >>> round_up(51.3), round_up(251.0), round_up(3.21)
    (52.0, 260.0, 3.3)
    """
    step = 10.0 ** (len(str(int(ms))) - 2)
    return round(-(-ms // step) * step, 3)


def fill(template: str, settings: Mapping[str, Any]) -> str:
    """Return model-config.yaml with these settings, its comments kept. Every one must stand in the template."""
    for name, value in settings.items():
        line = re.compile(rf"^(?P<name>\s*{name}:)[ ]*[^#\n]*?(?P<comment>[ ]*#.*)?$", re.MULTILINE)
        template, found = line.subn(rf"\g<name> {value}\g<comment>", template)
        assert found == 1, f"{name} stands {found} times in {TEMPLATE.name}"
    return template


def pack(
    name: str,
    artifact: Path,
    index: "PassageIndex | None",
    config: str,
    target: Path,
    second: SecondStage | None = None,
) -> None:
    """Write the archive with torch-model-archiver.

    It assembles the archive in TMPDIR/NAME, removing whatever has that name, so it gets a TMPDIR of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        staged, packed = Path(folder, "staged"), Path(folder, "packed")
        for part in ("tmp", "packed"):
            Path(folder, part).mkdir()
        _copy_code(Path(elasticlm.__file__).parent, staged / "elasticlm")
        _copy_code(HERE, staged / "elasticlm" / "handlers")
        left_out = shutil.ignore_patterns(".*", *_graphs_left_out(config))
        shutil.copytree(artifact, staged / "artifact", ignore=left_out)
        if second is not None:
            shutil.copytree(second.reranker, staged / RERANKER_FOLDER, ignore=left_out)
            PassageTexts.write(staged / PASSAGES_FOLDER, second.passages)
            write_pairs(staged / PAIRS_FILE, second.pairs)
        if index is not None:
            index.save(staged / "index")
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
    """Names of the folders of ONNX graphs that these settings do not run; auto may run any."""
    handler = yaml.safe_load(config)["handler"]
    backend, precision = handler.get("backend", "auto"), handler.get("precision", "auto")
    if backend == "torch":
        return [GRAPHS_FOLDER]
    return [name for name in PRECISIONS["onnx"] if precision not in ("auto", name)]


def _copy_code(package: Path, target: Path) -> None:
    """Copy a package's .py files, nothing else: no caches, no data."""
    for file in package.rglob("*.py"):
        copy = target / file.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm archive", "Pack an artifact for TorchServe.")
    options.add_argument("--model", required=True, metavar="DIR", help="artifact folder with its latency.csv")
    options.add_argument("--name", required=True, help="name of the archive and, by default, of the model in the URL")
    options.add_argument("--output", required=True, metavar="DIR", help="model store; NAME.mar is written there")
    options.add_argument("--index", metavar="DIR_OR_FAISS", help="index folder of `elasticlm index`, or a FAISS file "
                         "made elsewhere with --ids and --data; without one the archive does not search")  # fmt: skip
    options.add_argument("--ids", metavar="FILE", help="passage ids of a FAISS file, one a line in row order")
    options.add_argument("--data", metavar="SPEC", help="corpus of the index: of one made elsewhere, to check it by; "
                         "with --reranker for the texts that are reranked")  # fmt: skip
    options.add_argument("--reranker", metavar="DIR", help="a reranker's artifact folder with its latency.csv: hits are "
                         "reranked, one budget for both")  # fmt: skip
    options.add_argument("--pairs", metavar="FILE", help="quality of each pair of levels, retriever and reranker: the "
                         f"{PAIRS_FILE} of `elasticlm evaluate --matrix`")  # fmt: skip
    options.add_argument("--teacher", metavar="T", help="the artifact's teacher, where it has moved (for that check)")
    options.add_argument("--policy", metavar="SPEC", help="slack:t=250,alpha=.6, queue:t=250 or fixed:50 (with "
                         "--reranker fixed:50+10), t in ms (default: slack with 5 times the service time of the largest "
                         "level)")  # fmt: skip
    options.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="what runs a level; auto: the "
                         "fastest of those that `elasticlm profile` measured")  # fmt: skip
    options.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS["onnx"]), help="of weights and "
                         "products, int8 with the backend onnx")  # fmt: skip
    options.add_argument("--batch-size", type=_positive, default=1, help="most requests answered in one forward pass")
    options.add_argument("--workers", type=_positive, default=1, help="processes that share the queue")
    options.add_argument("--max-batch-delay-ms", type=_positive, default=1, metavar="MS",
                         help="ms that a batch with room waits for more requests")  # fmt: skip
    options.add_argument("--overwrite", action="store_true", help="replace NAME.mar")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "whole number of at least 1"  # what argparse calls it in its error


if __name__ == "__main__":
    run_in_checkout("archive")
