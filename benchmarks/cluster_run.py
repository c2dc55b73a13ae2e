"""Load, the loss of a node, and scaling on a Ray cluster (``elasticlm cluster``)."""

import argparse
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elasticlm.benchmarks.calibrate import measure_capacity, warm_up
from elasticlm.benchmarks.drive import Drive, Traffic, drive
from elasticlm.benchmarks.ray_server import RayServer
from elasticlm.benchmarks.replay import Request, write_requests
from elasticlm.benchmarks.rush_simulation import serving_of
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.servers import RunningServer
from elasticlm.benchmarks.summary import in_time
from elasticlm.benchmarks.workload import build_workload, shortener
from elasticlm.command import print_result, print_table, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import parse_level
from elasticlm.retrieval.data_specs import load_retrieval

SERVICE_TIMES = 10  # T, in times per request
RUSH, CALM = 1.5, 0.2  # loads of the scaling, in capacities of one replica
IN_TIME, RECOVERED_S, CLOSE = 0.99, 10.0, 1e-5  # goals
POLICY = "deadline"


def run_cluster(options: argparse.Namespace) -> int:
    """Run what the options name."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is stopped whatever ends this
    with tempfile.TemporaryDirectory(prefix="cluster-") as name:
        folder = Path(name)
        packed = Archive.unpack(options.archive, folder / "archive", "ray")
        archive = replace(packed, workers=1, batch_size=1, job_queue_size=packed.job_queue_size // packed.workers)
        if archive.task != "embed" or archive.is_pipeline:
            raise InputError(f"{options.archive}: expected an archive that answers embeddings")
        data = load_retrieval(options.data, options.split)
        workload = build_workload(
            options.workload, data, hits=False, shorten=shortener(archive.artifact, options.tokens)
        )
        requests_file = folder / "requests.jsonl"
        write_requests(requests_file, workload.requests)
        cluster = Cluster(archive, options, requests_file, workload.requests, folder)
        results = {part: getattr(cluster, part)() for part in options.parts}
        result = {"machine": machine(), "nodes": options.nodes, **results,
                  "holds": all(each["holds"] for each in results.values())}  # fmt: skip
        with new_folder(options.output, overwrite=options.overwrite) as output:
            (output / "cluster.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            if "scaling" in results:
                draw_replicas(results["scaling"], output / "replicas.png")
    print_table([{"part": part, **{name: value for name, value in each.items() if not isinstance(value, dict | list)}}
                 for part, each in results.items()])  # fmt: skip
    print_result({"output": str(options.output), **result})
    return 0 if result["holds"] else 1


@dataclass(frozen=True)
class Cluster:
    """One archive on clusters of its own."""

    archive: Archive
    options: argparse.Namespace
    requests_file: Path
    asked: Sequence[Request]
    folder: Path

    def load(self) -> dict[str, Any]:
        """Serve half of the capacity on all nodes."""
        many, capacity_rps, budget_ms = self._calibrated()
        traffic = self._traffic(self.options.load * capacity_rps)
        with self._serve(many, budget_ms) as server:
            driven = self._drive(server, traffic, budget_ms)
        share = float(in_time(driven.rows, budget_ms).mean())
        wrong = self._largest_error(driven)
        found = {
            "T ms": round(budget_ms, 1), "capacity rps": round(capacity_rps, 1),
            **_figures(driven.rows, budget_ms), "largest error": wrong,
            "holds": share >= IN_TIME and wrong <= CLOSE,
        }  # fmt: skip
        say(f"load: {found}")
        return found

    def loss(self) -> dict[str, Any]:
        """Kill a node in the middle of the same load."""
        many, capacity_rps, budget_ms = self._calibrated()
        traffic = self._traffic(self.options.load * capacity_rps)
        with self._serve(many, budget_ms) as server:
            assert isinstance(server, RayServer)
            killed_s: list[float] = []

            def kill_halfway(elapsed_s: float, latest: list[dict[str, str]]) -> None:
                if elapsed_s >= traffic.duration_s / 2 and not killed_s:
                    killed_s.append(elapsed_s)
                    threading.Thread(target=server.kill_node).start()

            driven = self._drive(server, traffic, budget_ms, on_second=kill_halfway)
        (at_s,) = killed_s
        rows = driven.rows.assign(end_s=driven.rows.t_s + driven.rows.latency_ms / 1e3)
        before, after = rows[rows.end_s < at_s], rows[rows.end_s >= at_s]
        failed = after[after.status != 200]
        answered_s = float(after[(after.status == 200) & (after.t_s >= at_s)].end_s.min() - at_s)
        wrong = self._largest_error(driven)
        found = {
            "T ms": round(budget_ms, 1), "capacity rps": round(capacity_rps, 1),
            "in time % before": round(100 * float(in_time(before, budget_ms).mean()), 2),
            "in time % after": round(100 * float(in_time(after, budget_ms).mean()), 2),
            **_figures(rows, budget_ms),
            "failed within s": round(float((failed.end_s - at_s).max()), 2) if len(failed) else 0.0,
            "answers again after s": round(answered_s, 2), "largest error": wrong,
            "holds": bool((rows.status > 0).all() and answered_s <= RECOVERED_S and wrong <= CLOSE),
        }  # fmt: skip
        say(f"loss: {found}")
        return found

    def scaling(self) -> dict[str, Any]:
        """Serve a rush and then calm with up to two replicas, once for each rule."""
        capacity_rps = self._capacity_rps(self.archive)
        budget_ms = self._budget_ms(capacity_rps)
        half_s = self.options.duration
        generator = np.random.default_rng(self.options.seed)
        times_s = np.concatenate([
            start_s + np.sort(generator.uniform(0, half_s, generator.poisson(share * capacity_rps * half_s)))
            for start_s, share in ((0.0, RUSH), (half_s, CALM))
        ])  # fmt: skip
        arrivals = self.folder / "scaling.csv"
        arrivals.write_text("t_s\n" + "".join(f"{time_s:.4f}\n" for time_s in times_s))
        traffic = Traffic(duration_s=2 * half_s, arrivals=f"trace:{arrivals}", seed=self.options.seed)
        found: dict[str, Any] = {"T ms": round(budget_ms, 1), "capacity rps": round(capacity_rps, 1), "rules": {}}
        for rule in ("demand", "requests"):
            ray = {"replicas": 1, "max_replicas": 2, "max_replicas_per_node": None, "scale_on": rule,
                   "upscale_delay_s": self.options.delay, "downscale_delay_s": self.options.delay}  # fmt: skip
            replicas: list[tuple[float, int]] = []
            with self._serve(self.archive, budget_ms, ray=ray) as server:

                def count(
                    elapsed_s: float,
                    latest: list[dict[str, str]],
                    server: Any = server,
                    replicas: list[tuple[float, int]] = replicas,
                ) -> None:
                    replicas.append((round(elapsed_s, 1), len(server.workers(self.archive.name))))

                driven = self._drive(server, traffic, budget_ms, on_second=count)
            two = [time_s for time_s, number in replicas if number > 1]
            back = [time_s for time_s, number in replicas if two and time_s > two[0] and number == 1]
            rows = driven.rows
            found["rules"][rule] = {
                "second replica after s": two[0] if two else None, "gone after s": back[0] if back else None,
                **_figures(rows[rows.t_s < half_s], budget_ms), "replicas": replicas,
            }  # fmt: skip
            shown = {name: value for name, value in found["rules"][rule].items() if name != "replicas"}
            say(f"scaling by {rule}: {shown}")
        demand = found["rules"]["demand"]
        found["holds"] = demand["second replica after s"] is not None and demand["gone after s"] is not None
        return found

    # -- inside --------------------------------------------------------------------------------------------------------

    def _calibrated(self) -> tuple[Archive, float, float]:
        """Return the archive on all nodes, the capacity of its largest level there in requests per second, and T."""
        nodes, waiting = self.options.nodes, self.archive.job_queue_size
        many = replace(self.archive, workers=nodes, nodes=nodes, job_queue_size=nodes * waiting)
        capacity_rps = self._capacity_rps(many)
        return many, capacity_rps, self._budget_ms(capacity_rps / self.options.nodes)

    def _capacity_rps(self, archive: Archive) -> float:
        once = Traffic(duration_s=1.0, seed=self.options.seed)
        return measure_capacity(archive, archive.largest, self.requests_file, self.asked, once)

    def _serve(self, archive: Archive, budget_ms: float, **options: Any) -> RunningServer:
        _, waiting, _ = serving_of(f"{POLICY}:t={budget_ms}", archive, [budget_ms])
        return archive.serve(POLICY, budget_ms, waiting, **options)

    def _budget_ms(self, replica_rps: float) -> float:
        return self.options.budget or SERVICE_TIMES * 1e3 / replica_rps

    def _traffic(self, rate_rps: float) -> Traffic:
        return Traffic(duration_s=self.options.duration, arrivals=f"poisson:{rate_rps:.2f}", seed=self.options.seed)

    def _drive(self, server: Any, traffic: Traffic, budget_ms: float, **watch: Any) -> Drive:
        warm_up(server, self.archive.name, self.asked)
        drain_s = 2 * budget_ms / 1e3 + 30
        return drive(server.inference_url, self.archive.name, self.requests_file, traffic, drain_s=drain_s, **watch)

    def _largest_error(self, driven: Drive) -> float:
        """Return by how much an answer's vector differs from the level's own, computed here, at most."""
        setup = {name: self.archive.handler[name] for name in ("backend", "precision", "threads")}
        model = ElasticModel.from_pretrained(self.archive.artifact, **setup)
        texts = {request.query_id: json.loads(request.body)["text"] for request in self.asked}
        expected: dict[tuple[str, str], np.ndarray] = {}
        largest = 0.0
        for row, body in zip(driven.rows.itertuples(), driven.bodies, strict=True):
            if row.status == 200:
                key = (row.query_id, row.level)
                if key not in expected:
                    expected[key] = model.embed([texts[row.query_id]], level=parse_level(row.level)).numpy()[0]
                vector = np.array(json.loads(body)["embedding"], np.float32)
                largest = max(largest, float(np.abs(vector - expected[key]).max()))
        return largest


def _figures(rows: pd.DataFrame, budget_ms: float) -> dict[str, Any]:
    answered = rows[rows.status == 200]
    statuses = {str(status): int(count) for status, count in rows.status.value_counts().items()}
    levels = {str(level): round(share, 3) for level, share in answered.level.value_counts(normalize=True).items()}
    return {
        "requests": len(rows), "in time %": round(100 * float(in_time(rows, budget_ms).mean()), 2),
        "p50 ms": round(float(answered.latency_ms.quantile(0.5)), 1),
        "p99 ms": round(float(answered.latency_ms.quantile(0.99)), 1), "statuses": statuses, "levels": levels,
    }  # fmt: skip


def draw_replicas(scaling: Mapping[str, Any], file: Path) -> None:
    """Draw the number of replicas over time, for both rules."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    for rule, figures in scaling["rules"].items():
        times_s, counts = zip(*figures["replicas"], strict=True)
        axes.step(times_s, counts, where="post", label=f"by {rule}", linestyle="-" if rule == "demand" else "--")
    half_s = times_s[-1] / 2
    axes.axvspan(0, half_s, color="0.92", label="rush")
    axes.set(xlabel="seconds", ylabel="replicas", yticks=[0, 1, 2], ylim=(0, 2.3))
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
