"""``elasticlm evaluate``: how well every level retrieves, reranks or classifies, beside the teacher.

Rerankers, classifiers and pipelines have their own modules (elasticlm.trainer.evaluation.reranking, elasticlm.trainer.evaluation.classification,
elasticlm.trainer.evaluation.level_pairs). Of encoders: the passages are encoded once by what encodes the artifact's passages (or come from an
index); the queries by every level. Retention is a level's metric over that of the teacher with the teacher's own
passages.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elasticlm import command
from elasticlm.backend import BACKENDS, PRECISIONS
from elasticlm.errors import InputError
from elasticlm.files import new_file, new_folder, refuse_existing
from elasticlm.model.configuration import Calibration, Fusion
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import QUALITY_FILE
from elasticlm.model.structure import Level, level_name, parse_levels
from elasticlm.model.teacher import load_model, load_teacher, passage_encoder
from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.data_specs import RetrievalData, load_corpus, load_retrieval
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.cascade import PAIRS_FILE, MeasuredPair, write_pairs
from elasticlm.trainer.evaluation import calibration, classification, reranking
from elasticlm.trainer.evaluation import level_pairs as pipeline
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.stored_vectors import stored_vectors
from elasticlm.trainer.training_texts import TokenizedTexts

FORMAT_VERSION = 1
TEACHER = "teacher"
SUMMARY = ("data", "split", "split_sha256", "metrics", "retention")
SHOWN = ("RR@10", "nDCG@10", "R@100", *metrics.CANDIDATE_MEASURES)


@dataclass(frozen=True)
class Row:
    """What was measured for the teacher or for a level: its run, and each measure's values [queries]."""

    run: metrics.Run
    values: Mapping[str, np.ndarray]


def main(argv: list[str] | None = None) -> None:
    parser = command.parser("elasticlm evaluate", "Measure every level on a split, beside the teacher.")
    parser.add_argument("--model", required=True, help="artifact folder, or a teacher's folder or hub name")
    parser.add_argument("--data", required=True, help="beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc; of a classifier "
                        "glue:DIR or hf:NAME[/CONFIG]")  # fmt: skip
    parser.add_argument("--split", default="test", help="split whose queries are judged")
    parser.add_argument("--levels", help="levels to measure, such as 50,10 (all of the artifact's)")
    parser.add_argument("--teacher", help="what retention is measured against (the teacher named in the artifact)")
    parser.add_argument("--index", help="index folder, or a FAISS file made elsewhere; else passages are encoded now")
    parser.add_argument("--ids", help="passage ids of a FAISS file made elsewhere, one a line, in row order")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--run", metavar="FILE", help="reranker: a retriever's run in TREC form to rerank (the set's "
                        "judged candidates, else BM25's)")  # fmt: skip
    parser.add_argument("--depth", type=int, default=20, help="reranker: passages of the first stage to rerank")
    parser.add_argument("--max-queries", type=int, metavar="N", help="reranker: at most so many, drawn at random")
    parser.add_argument("--calibrate", action="store_true", help="reranker: fit on this split how likely a score of "
                        "each level is that of a relevant passage, and write it into the artifact")  # fmt: skip
    parser.add_argument("--fuse", action="store_true", help="reranker: fit on this split how much the first stage "
                        "should count beside each level's scores, and write it into the artifact")  # fmt: skip
    parser.add_argument("--matrix", action="store_true", help="reranker: every pair of its levels and those of "
                        "--retriever, whose best passages it reranks; beside --output a heat map, FILE.png, and "
                        f"{PAIRS_FILE}, for elasticlm.handlers.archive")  # fmt: skip
    parser.add_argument("--retriever", metavar="DIR", help="--matrix: what retrieves")
    parser.add_argument("--retriever-levels", help="--matrix: levels of the retriever (all)")
    parser.add_argument("--run-dir", help="folder for the TREC runs, one a level")
    parser.add_argument("--save", action="store_true", help=f"also write the result into the artifact's {QUALITY_FILE}")
    parser.add_argument("--batch-size", type=int, default=32, help="queries encoded at once")
    parser.add_argument("--backend", default="torch", choices=BACKENDS, help="what runs the levels; passages are "
                        "encoded in fp32 all the same")  # fmt: skip
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS["onnx"], help="of ONNX graphs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    args = parser.parse_args(argv)

    started = time.perf_counter()
    drawing, pairs_file = Path(args.output).with_suffix(".png"), Path(args.output).with_name(PAIRS_FILE)
    for output in filter(None, (args.output, args.run_dir, *((drawing, pairs_file) if args.matrix else ()))):
        refuse_existing(output, overwrite=args.overwrite)
    fitting = [f"--{option}" for option in ("calibrate", "fuse") if getattr(args, option)]
    if fitting and args.split == "test":
        raise InputError(f"{fitting[0]} fits on the split that is measured: choose another than test, such as dev")
    if args.depth < 1 or (args.max_queries or 1) < 1:
        raise InputError("--depth and --max-queries: expected 1 or more")
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: expected 1 or more texts")
    if args.ids and not args.index:
        raise InputError("--ids names the passages of an index: give --index FILE.faiss too")
    if args.precision not in PRECISIONS[args.backend]:
        raise InputError(f"--precision {args.precision}: the backend {args.backend} runs levels in fp32")
    model = load_model(args.model)
    if args.backend == "onnx":
        model.run_onnx(args.model, precision=args.precision, threads=torch.get_num_threads())
    if fitting and model.config.task != "score":
        raise InputError(
            f"{fitting[0]} is for rerankers (task 'score'); the task of {args.model} is {model.config.task!r}"
        )
    _check_matrix(args, model)
    is_teacher = _is_teacher(model)
    levels = parse_levels(args.levels) if args.levels else () if is_teacher else model.levels
    for level in levels:
        model.structures[level]  # refuses a level that is not there, before any work
    quality = _read_quality(Path(args.model)) if args.save else {}
    if model.config.task == "classify":
        result = classification.evaluate(model, args.teacher, args.data, args.split, levels, seed=args.seed)
        _write(args, result | {"seconds": round(time.perf_counter() - started, 1)}, quality, len(result["query_ids"]))
        command.print_table(classification.table(result))
        command.print_result({"output": args.output} | {key: result[key] for key in SUMMARY})
        return
    data = load_retrieval(args.data, args.split)
    if args.matrix:
        result, pairs = _measure_pipeline(args, model, data, levels)
        _write(args, result | {"seconds": round(time.perf_counter() - started, 1)}, {}, len(result["query_ids"]))
        write_pairs(pairs_file, pairs)
        pipeline.draw_matrix(pairs, drawing)
        command.print_table(pipeline.table(pairs))
        command.print_result({"output": args.output, "pairs": str(pairs_file), "metrics": result["metrics"]})
        return
    if model.config.task == "score":
        result, runs = _measure_reranker(args, model, data, levels)
        result |= {"seconds": round(time.perf_counter() - started, 1)}
        _write_runs(args, runs)
        _write(args, result, quality, len(result["query_ids"]))
        command.print_table(reranking.table(result))
        if "calibration" in result:
            command.print_table(reranking.calibration_table(result["calibration"]))
        shown = [key for key in (*SUMMARY, "above_first_stage", "fusion", "calibration") if key in result]
        command.print_result({"output": args.output} | {key: result[key] for key in shown})
        return
    index = PassageIndex.load(args.index, args.ids) if args.index else None
    teacher = _load_teacher(model, args.teacher, is_teacher=is_teacher)
    command.say(f"{args.data}, {args.split}: {len(data.query_ids):,} queries, {len(data.passage_ids):,} passages")

    rows, encoder = measure(model, teacher, data, levels, index=index, batch_size=args.batch_size)
    result = report(rows, data, seed=args.seed) | {
        "model": args.model,
        "passages": {
            "encoder": model.config.passages.encoder,
            "fingerprint": encoder.fingerprint(),
            "index": args.index,
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    _write_runs(args, {name: row.run for name, row in rows.items()})
    _write(args, result, quality, len(data.query_ids))
    command.print_table(_table(result))
    command.print_result({"output": args.output, "seconds": result["seconds"]} | {key: result[key] for key in SUMMARY})


def _measure_reranker(
    args: argparse.Namespace, model: ElasticModel, data: RetrievalData, levels: Sequence[Level]
) -> tuple[dict[str, Any], dict[str, metrics.Run]]:
    """Measure a reranker; what is fitted on the way is written into its artifact."""
    teacher = ElasticModel.from_pretrained(args.teacher) if args.teacher else None
    if teacher is not None and teacher.config.task != "score":
        raise InputError(f"--teacher {args.teacher}: its task is {teacher.config.task!r}, not ranking ('score')")
    run = metrics.read_trec_run(Path(args.run)) if args.run else None
    result, runs = reranking.evaluate(model, teacher, data, levels, run=run, depth=args.depth,
                                      max_queries=args.max_queries, fuse=args.fuse, seed=args.seed)  # fmt: skip
    result |= {"model": args.model}
    if args.fuse:
        model.config.fusion = Fusion(result["fusion"])
    if args.calibrate or model.config.calibration:
        names = [level_name(level) for level in levels]
        scores, relevant = reranking.pairs_of(runs, names, data)
        if args.calibrate:
            model.config.calibration = Calibration({name: calibration.fit(scores[name], relevant) for name in names})
        fitted = model.config.calibration.by_level
        known = {name: found for name, found in scores.items() if name in fitted}
        result |= {"calibration": calibration.report(known, relevant, fitted)}
    if args.fuse or args.calibrate:
        model.config.save_pretrained(args.model)
    return result, runs


def _check_matrix(args: argparse.Namespace, model: ElasticModel) -> None:
    if args.matrix != bool(args.retriever) or (args.retriever_levels and not args.matrix):
        raise InputError("--matrix, --retriever and --retriever-levels go together")
    if args.matrix and model.config.task != "score":
        raise InputError(f"--matrix: the task of {args.model} is {model.config.task!r}, not ranking ('score')")
    if args.matrix and (Path(args.output).suffix != ".json" or Path(args.output).name == PAIRS_FILE):
        raise InputError(
            f"--output {args.output}: expected FILE.json, beside which {PAIRS_FILE} and FILE.png are written"
        )
    others = ("calibrate", "fuse", "run", "run_dir", "save")
    if args.matrix and (given := next((name for name in others if getattr(args, name)), None)):
        raise InputError(f"--{given.replace('_', '-')} does not go with --matrix")


def _measure_pipeline(
    args: argparse.Namespace, reranker: ElasticModel, data: RetrievalData, levels: Sequence[Level]
) -> tuple[dict[str, Any], list[MeasuredPair]]:
    """Measure every pair of levels of a retriever and this reranker."""
    retriever = load_model(args.retriever)
    if retriever.config.task != "embed":
        raise InputError(
            f"--retriever {args.retriever}: its task is {retriever.config.task!r}, not retrieval ('embed')"
        )
    retriever_levels = parse_levels(args.retriever_levels) if args.retriever_levels else retriever.levels
    for level in retriever_levels:
        retriever.structures[level]
    encoder = passage_encoder(retriever, args.teacher)
    if args.index:
        index = PassageIndex.load(args.index, args.ids)
        _check_index(index, retriever, encoder, data)
    else:
        index = _encode_passages(encoder, data)
    result, pairs = pipeline.evaluate(retriever, reranker, data, index, retriever_levels=retriever_levels, levels=levels,
                                      depth=args.depth, max_queries=args.max_queries, seed=args.seed)  # fmt: skip
    return result | {"model": args.model, "retriever": args.retriever, "index": args.index}, pairs


def _write_runs(args: argparse.Namespace, runs: Mapping[str, metrics.Run]) -> None:
    if args.run_dir:
        with new_folder(args.run_dir, overwrite=args.overwrite) as folder:
            for name, run in runs.items():
                metrics.write_trec_run(folder / f"{name}.run", run, tag=f"elasticlm-{name}")


def _write(args: argparse.Namespace, result: Mapping[str, Any], quality: dict[str, Any], count: int) -> None:
    """Write the evaluation, and into the artifact's quality where asked."""
    result = {**result, "backend": args.backend, "precision": args.precision}
    write_json(Path(args.output), result, overwrite=args.overwrite)
    if args.save:
        kept = {key: result[key] for key in ("split_sha256", "metrics", "retention")}
        variant = "" if args.precision == "fp32" else f"#{args.precision}"
        quality[f"{args.data}#{args.split}{variant}"] = kept | {"queries": count}
        write_json(Path(args.model) / QUALITY_FILE, quality, overwrite=True)


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

    Returns the rows by name (teacher first, then "100", "50", ...) and the encoder of the artifact's passages.
    """
    teachers_encoder = passage_encoder(teacher)
    encoder = teachers_encoder if _shares_passages(model, teachers_encoder) else passage_encoder(model)
    shared = encoder.fingerprint() == teachers_encoder.fingerprint()
    if index is not None:
        _check_index(index, model, encoder, data)
    else:
        index = _encode_passages(encoder, data)
    teachers_index = index if shared else _encode_passages(teachers_encoder, data)
    rows = {TEACHER: _row(teacher, teacher.structures.largest, data, teachers_index, batch_size)}
    for level in levels:
        rows[level_name(level)] = _row(model, level, data, index, batch_size)
    return rows, encoder


def report(rows: Mapping[str, Row], data: RetrievalData, *, seed: int = 0) -> dict[str, Any]:
    """The evaluation's JSON: means, retention with intervals, and the values of each query."""
    teacher = rows[TEACHER].values
    return {
        "format_version": FORMAT_VERSION,
        "data": data.spec,
        "split": data.split,
        "split_sha256": data.split_sha256,
        "metrics": {
            name: {measure: round(metrics.mean(values), metrics.DECIMALS) for measure, values in row.values.items()}
            for name, row in rows.items()
        },
        "retention": {
            name: {measure: metrics.rounded(metrics.retention(values, teacher[measure], seed=seed))
                   for measure, values in row.values.items()}
            for name, row in rows.items() if name != TEACHER
        },
        "query_ids": data.query_ids,
        "per_query": {
            name: {measure: metrics.rounded(values) for measure, values in row.values.items()}
            for name, row in rows.items()
        },
    }  # fmt: skip


def write_json(path: Path, value: Mapping[str, Any], *, overwrite: bool) -> None:
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False) + "\n", "utf-8")


def _row(model: ElasticModel, level: Level, data: RetrievalData, index: PassageIndex, batch_size: int) -> Row:
    queries = model.embed(data.queries, level=level, batch_size=batch_size, show_progress=True).numpy()
    run = metrics.make_run(data.query_ids, *index.search(queries, metrics.DEPTH))
    values = metrics.per_query(data.qrels, run)
    if data.candidates:
        values |= _rerank(queries, data, index)
    return Row(run, values)


def _rerank(queries: np.ndarray, data: RetrievalData, index: PassageIndex) -> dict[str, np.ndarray]:
    """RR and AP of each query's own candidates; NaN where it has none or none of them is right."""
    candidates = {qid: grades for qid, grades in (data.candidates or {}).items() if any(g > 0 for g in grades.values())}
    vectors, place = index.vectors(), {qid: i for i, qid in enumerate(data.query_ids)}
    run = {
        qid: dict(
            zip(grades, (vectors[[index.row[pid] for pid in grades]] @ queries[place[qid]]).tolist(), strict=True)
        )
        for qid, grades in candidates.items()
    }
    values = {measure: np.full(len(data.query_ids), np.nan) for measure in metrics.CANDIDATE_MEASURES}
    if candidates:
        for measure, found in metrics.per_query(candidates, run, metrics.CANDIDATE_MEASURES).items():
            values[measure][[place[qid] for qid in candidates]] = found
    return values


def _is_teacher(model: ElasticModel) -> bool:
    """Whether this is a teacher as it is: what encodes its passages is itself."""
    return model.config.passages.encoder == "teacher" and model.has_fingerprint(model.config.passages.fingerprint)


def _load_teacher(model: ElasticModel, name: str | None, *, is_teacher: bool) -> ElasticModel:
    if name is None and is_teacher:
        return model
    name = name or model.config.teacher.name
    if not name:
        raise InputError("the artifact names no teacher to measure retention against: give --teacher")
    return load_teacher(name)


def _shares_passages(model: ElasticModel, teachers_encoder: ElasticModel) -> bool:
    """Whether the artifact's passages are encoded by what encodes the teacher's."""
    passages = model.config.passages
    return passages.encoder == "teacher" and teachers_encoder.has_fingerprint(passages.fingerprint)


def _encode_passages(encoder: ElasticModel, data: RetrievalData) -> PassageIndex:
    texts = TokenizedTexts.of(encoder, data.passages, "passage")
    vectors = stored_vectors(encoder, texts, Processes("fp32"), desc="passages")
    return PassageIndex.build(
        vectors.all().numpy(), data.passage_ids, fingerprint=encoder.fingerprint(), corpus_sha256=None
    )


def _check_index(index: PassageIndex, model: ElasticModel, encoder: ElasticModel, data: RetrievalData) -> None:
    index.check(model, lambda: encoder)
    if index.fingerprint is None:
        corpus = load_corpus(data.spec)
        passages = dict(zip(corpus.ids, corpus.passages, strict=True))
        cosine = index.check_sample(passages, lambda texts: encoder.embed(texts, kind="passage").numpy())
        command.say(f"{index.name}: no fingerprint; a sample of its passages has a mean cosine of {cosine:.3f}")
    missing = [pid for pid in data.passage_ids if pid not in index]
    if missing:
        raise InputError(
            f"{index.name}: {len(missing):,} of the {len(data.passage_ids):,} passages of {data.spec} are not in it, "
            f"such as {missing[0]!r}"
        )
    if len(index) > len(data.passage_ids):
        command.say(f"{index.name}: {len(index) - len(data.passage_ids):,} more passages than {data.spec} compete here")


def _read_quality(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(f"--save writes {QUALITY_FILE} into an artifact folder, and {folder} is none")
    file = folder / QUALITY_FILE
    try:
        return json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None


def _table(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a level for people; retention of RR@10 with its 95 % interval."""
    table = []
    for name, values in result["metrics"].items():
        kept = result["retention"].get(name, {}).get("RR@10")
        interval = f"{kept[0]:.3f} [{kept[1]:.3f}, {kept[2]:.3f}]" if kept else "1" if name == TEACHER else "-"
        cells = {measure: f"{values[measure]:.4f}" for measure in SHOWN if measure in values}
        table.append({"level": name} | cells | {"retention of RR@10": interval})
    return table
