"""An archive as the simulation sees it: what it holds, and a server of it under any policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticlm.benchmarks.ray_server import RayServer
from elasticlm.benchmarks.server import TorchServe
from elasticlm.benchmarks.servers import RunningServer
from elasticlm.model.artifact import read_config
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Choice
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.schedule.cascade import PairTable
from elasticlm.schedule.latency import LatencyTable, choose_setup
from elasticlm.serving.bundle import Bundle, unpack
from elasticlm.serving.cascade_times import pair_table

RAY_CPUS = 0.5  # that Ray reserves per replica, so that several fit on a small machine
QUIET = {"disable_system_metrics": "true"}  # no process that samples the machine in the middle of a run


@dataclass(frozen=True)
class Archive:
    """An unpacked archive: what it serves and how. A pipeline's levels are its pairs, best first.

    `handler` is that section of its settings; `server` is torchserve or ray, which has `nodes`, and
    its workers are divided among them.
    """

    bundle: Bundle
    name: str
    task: str
    levels: tuple[Choice, ...]
    batch_size: int
    workers: int
    max_batch_delay_ms: int
    job_queue_size: int
    handler: Mapping[str, Any]
    server: str = "torchserve"
    nodes: int = 1

    @classmethod
    def unpack(cls, archive: Path, folder: Path, server: str = "torchserve") -> "Archive":
        """Unpack a .mar of `elasticlm archive`; raises InputError on any other file."""
        bundle = unpack(archive, folder)
        name, served = bundle.read_settings()
        return cls(
            bundle, name, read_config(bundle.artifact).task, bundle.read_levels(), served["batchSize"],
            served["minWorkers"], served["maxBatchDelay"], served["jobQueueSize"], served["handler"], server,
        )  # fmt: skip

    @property
    def artifact(self) -> Path:
        return self.bundle.artifact

    @property
    def index(self) -> Path | None:
        return self.bundle.index

    @property
    def is_pipeline(self) -> bool:
        """Whether a reranker reranks what is found; such an archive answers searches only."""
        return self.bundle.is_two_stage

    def read_times(self) -> LatencyTable | PairTable:
        """Return the service times of its levels, of a pipeline of its pairs; that loads its models and its index."""
        setup = {name: self.handler[name] for name in ("threads", "backend", "precision") if name in self.handler}
        table, chosen = choose_setup(self.artifact, **setup)
        if not self.is_pipeline:
            return table
        retriever, reranker = (
            (ElasticModel.from_pretrained(part), choose_setup(part, **setup)[0])
            for part in (self.artifact, self.bundle.reranker)
        )
        passages = PassageTexts(self.bundle.passages)
        assert self.index is not None, "a two-stage archive contains an index"
        index = PassageIndex.load(self.index, memory_mapped=True)
        return pair_table(self.bundle.read_pairs(), retriever, reranker, index, passages, backend=chosen.backend)

    @property
    def largest(self) -> Choice:
        return self.levels[0]

    @property
    def smallest(self) -> Choice:
        return self.levels[-1]

    def serve(
        self,
        policy: str,
        budget_ms: float,
        job_queue_size: int | None,
        *,
        handler: Mapping[str, object] | None = None,
        token_auth: bool = False,
        ray: Mapping[str, object] | None = None,
    ) -> RunningServer:
        """Return a server of this archive under a policy.

        Args:
            job_queue_size: how many requests may wait; None: as the archive says.
            handler: further settings of the handler.
            ray: further arguments of elasticlm.handlers.ray_app.build.
        """
        settings = {"policy": policy, "latency_budget_ms": budget_ms} | dict(handler or {})
        if self.server == "ray":
            queue_size = -(-(job_queue_size or self.job_queue_size) // self.workers)
            arguments = {
                "replicas": self.workers, "ingress_replicas": self.nodes, "num_cpus": RAY_CPUS,
                "max_replicas_per_node": -(-self.workers // self.nodes),
                "batch_size": self.batch_size, "queue_size": queue_size, "settings": settings,
            }  # fmt: skip
            return RayServer([self.bundle.folder], arguments=arguments | dict(ray or {}), nodes=self.nodes)
        return TorchServe(
            {self.name: self.bundle.folder},
            batch_size=self.batch_size,
            workers=self.workers,
            max_batch_delay_ms=self.max_batch_delay_ms,
            job_queue_size=job_queue_size or self.job_queue_size,
            config=QUIET,
            handler=settings,
            token_auth=token_auth,
        )
