"""Run ``elasticlm evaluate``: measure the model according to its task, then write and print the result."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from elasticlm import command
from elasticlm.errors import InputError
from elasticlm.files import lock, new_folder
from elasticlm.model.artifact import update_config
from elasticlm.model.configuration import Calibration, Fusion
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import QUALITY_FILE
from elasticlm.model.structure import Level, level_name, parse_levels
from elasticlm.model.teacher import is_artifact, load_model, passage_encoder
from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.data_specs import RetrievalData, load_retrieval
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.cascade import PAIRS_FILE, MeasuredPair, write_pairs
from elasticlm.trainer.evaluation import calibration, classification, level_pairs, reranking, retrieving
from elasticlm.trainer.evaluation.base import Evaluation, write_json
from elasticlm.trainer.evaluation.retrieving import check_index, encode_passages
from elasticlm.trainer.inputs import teacher_settings

SUMMARY = ("data", "split", "split_sha256", "metrics", "retention")


def evaluate(args: argparse.Namespace) -> None:
    """Measure the model that the options name. Raises InputError where options, model and data do not go together."""
    started = time.perf_counter()
    model = load_model(args.model, **teacher_settings(args))
    task = model.config.task
    if args.backend == "onnx":
        model.run_onnx(args.model, precision=args.precision, threads=torch.get_num_threads())
    for option in ("calibrate", "fuse", "matrix"):
        if getattr(args, option) and task != "score":
            raise InputError(f"--{option} is for rerankers (task 'score'); the task of {args.model} is {task!r}")
    for option in ("calibrate", "fuse", "save"):
        if getattr(args, option) and not is_artifact(Path(args.model)):
            raise InputError(f"--{option} writes into an artifact folder, and {args.model} is not one")
    levels = parse_levels(args.levels) if args.levels else () if retrieving.is_teacher(model) else model.levels
    for level in levels:
        model.structures[level]  # refuses a level that is not there, before any work
    if args.save:
        _read_quality(Path(args.model))  # refuses a folder that cannot take the result, before any work

    def finish(result: Evaluation, *, shown: Sequence[str] = (), **more: Any) -> dict[str, Any]:
        """Write the evaluation, and return what the last line of the output says."""
        facts = {**result.facts, "seconds": round(time.perf_counter() - started, 1), "backend": args.backend,
                 "precision": args.precision}  # fmt: skip
        whole = replace(result, facts=facts)
        whole.write(args.output, overwrite=args.overwrite)
        fields = whole.to_json()
        if args.save:
            _save_quality(args, fields)
        keys = [key for key in (*SUMMARY, *shown) if fields.get(key)]
        return {"output": args.output} | more | {key: fields[key] for key in keys}

    if task == "classify":
        if args.corpus:
            raise InputError(f"--corpus is for retrievers and rerankers; the task of {args.model} is {task!r}")
        whole = load_model(args.teacher) if args.teacher else None
        result = classification.evaluate(model, whole, args.data, args.split, levels, seed=args.seed)
        summary = finish(result)
        command.print_table(classification.table(result))
        command.print_result(summary)
        return
    data = load_retrieval(args.data, args.split, corpus=args.corpus)
    data = replace(data, keep_self_hits=args.keep_self_hits or data.keep_self_hits)
    if task == "score" and not data.judged:
        raise InputError(f"{args.data}: split {args.split} has answers and no judgements, which rerankers need")
    if args.matrix:
        result, pairs = evaluate_pipeline(args, model, data, levels)
        pairs_file = Path(args.output).with_name(PAIRS_FILE)
        summary = finish(result, pairs=str(pairs_file))
        write_pairs(pairs_file, pairs)
        level_pairs.draw_matrix(pairs, Path(args.output).with_suffix(".png"))
        command.print_table(level_pairs.table(pairs))
        command.print_result(summary)
        return
    if task == "score":
        result, runs = evaluate_reranker(args, model, data, levels)
        _write_runs(args, runs)
        summary = finish(result, shown=("above_first_stage", "fusion", "calibration"))
        command.print_table(reranking.table(result))
        if "calibration" in result.facts:
            command.print_table(reranking.calibration_table(result.facts["calibration"]))
        command.print_result(summary)
        return
    index = PassageIndex.load(args.index, args.ids, memory_mapped=True) if args.index else None
    teacher = retrieving.reference_teacher(model, args.teacher)
    command.say(f"{args.data}, {args.split}: {len(data.query_ids):,} queries, {len(data.passage_ids):,} passages")
    rows, encoder = retrieving.measure(model, teacher, data, levels, index=index, batch_size=args.batch_size)
    passages = {"encoder": model.config.passages.encoder, "fingerprint": encoder.fingerprint(), "index": args.index}
    passages |= {"corpus": args.corpus} if args.corpus else {}
    result = retrieving.evaluation_of(rows, data, seed=args.seed, model=args.model, passages=passages)
    _write_runs(args, {name: row.run for name, row in rows.items()})
    summary = finish(result, shown=("seconds",))
    command.print_table(retrieving.table(result))
    command.print_result(summary)


def evaluate_reranker(
    args: argparse.Namespace, model: ElasticModel, data: RetrievalData, levels: Sequence[Level]
) -> tuple[Evaluation, dict[str, metrics.Run]]:
    """Measure a reranker; what is fitted on the way is written into its artifact."""
    teacher = load_model(args.teacher) if args.teacher else None
    if teacher is not None and teacher.config.task != "score":
        raise InputError(f"--teacher {args.teacher}: its task is {teacher.config.task!r}, not ranking ('score')")
    run = metrics.read_trec_run(Path(args.run)) if args.run else None
    result, runs = reranking.evaluate(model, teacher, data, levels, run=run, depth=args.depth,
                                      max_queries=args.max_queries, fuse=args.fuse, seed=args.seed)  # fmt: skip
    facts: dict[str, Any] = {"model": args.model}
    if args.fuse:
        model.config.fusion = Fusion(result.facts["fusion"])
    if args.calibrate or model.config.calibration:
        names = [level_name(level) for level in levels]
        scores, relevant = reranking.pairs_of(runs, names, data)
        if args.calibrate:
            model.config.calibration = Calibration({name: calibration.fit(scores[name], relevant) for name in names})
        fitted = model.config.calibration.by_level
        known = {name: found for name, found in scores.items() if name in fitted}
        facts["calibration"] = calibration.report(known, relevant, fitted)
    if args.fuse or args.calibrate:
        fitted_parts = ("fusion",) * args.fuse + ("calibration",) * args.calibrate
        update_config(args.model, {name: getattr(model.config, name).to_json() for name in fitted_parts})
    return replace(result, facts={**result.facts, **facts}), runs


def evaluate_pipeline(
    args: argparse.Namespace, reranker: ElasticModel, data: RetrievalData, levels: Sequence[Level]
) -> tuple[Evaluation, list[MeasuredPair]]:
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
        index = PassageIndex.load(args.index, args.ids, memory_mapped=True)
        check_index(index, retriever, encoder, data)
    else:
        index = encode_passages(encoder, data)
    result, pairs = level_pairs.evaluate(
        retriever, reranker, data, index, retriever_levels=retriever_levels, levels=levels,
        depth=args.depth, max_queries=args.max_queries, seed=args.seed,
    )  # fmt: skip
    facts = {"model": args.model, "retriever": args.retriever, "index": args.index}
    return replace(result, facts={**result.facts, **facts}), pairs


def _write_runs(args: argparse.Namespace, runs: Mapping[str, metrics.Run]) -> None:
    if args.run_dir:
        with new_folder(args.run_dir, overwrite=args.overwrite) as folder:
            for name, run in runs.items():
                metrics.write_trec_run(folder / f"{name}.run", run, tag=f"elasticlm-{name}")


def _save_quality(args: argparse.Namespace, fields: Mapping[str, Any]) -> None:
    """Write the evaluation into the artifact's quality.json, next to those of other data."""
    file = Path(args.model) / QUALITY_FILE
    kept = {key: fields[key] for key in ("split_sha256", "metrics", "retention")}
    variant = "" if args.precision == "fp32" else f"#{args.precision}"
    added = {f"{args.data}#{args.split}{variant}": kept | {"queries": len(fields["query_ids"])}}
    with lock(file, wait=True):
        write_json(file, _read_quality(Path(args.model)) | added, overwrite=True)


def _read_quality(folder: Path) -> dict[str, Any]:
    file = folder / QUALITY_FILE
    try:
        return json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
