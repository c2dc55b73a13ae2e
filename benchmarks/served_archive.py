"""An archive as the simulation sees it: what it holds, and a server of it under any policy."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elasticlm.benchmarks.server import TorchServe
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Choice, ElasticStructure
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.schedule.cascade import PAIRS_FILE, PairTable, read_pairs
from elasticlm.schedule.latency import LatencyTable, choose_setup
from elasticlm.serving.cascade_times import PASSAGES_FOLDER, RERANKER_FOLDER, pair_table

QUIET = {"disable_system_metrics": "true"}  # no process that samples the machine in the middle of a run


@dataclass(frozen=True)
class Archive:
    """An unpacked archive: what it serves and how. A pipeline's levels are its pairs, best first.

    `handler` is that section of its model-config.yaml.
    """

    folder: Path
    name: str
    task: str
    levels: tuple[Choice, ...]
    batch_size: int
    workers: int
    max_batch_delay_ms: int
    handler: Mapping[str, Any]

    @classmethod
    def unpack(cls, archive: Path, folder: Path) -> "Archive":
        """Unpack a .mar of `elasticlm archive`; raises InputError on any other file."""
        try:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
            manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())["model"]
            served = yaml.safe_load((folder / manifest["configFile"]).read_text())
            config = json.loads((folder / "artifact" / "config.json").read_text())
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{archive}: not an archive made by `elasticlm archive` ({error})") from None
        levels: tuple[Choice, ...] = ElasticStructure.from_json(config["levels"]).levels
        if (folder / PAIRS_FILE).is_file():
            levels = tuple(pair.levels for pair in read_pairs(folder / PAIRS_FILE))
        return cls(
            folder, manifest["modelName"], config.get("task", "embed"), levels, served["batchSize"],
            served["minWorkers"], served["maxBatchDelay"], served["handler"],
        )  # fmt: skip

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"

    @property
    def index(self) -> Path | None:
        return self.folder / "index" if (self.folder / "index").is_dir() else None

    @property
    def is_pipeline(self) -> bool:
        """Whether a reranker reranks what is found; such an archive answers searches alone."""
        return (self.folder / PAIRS_FILE).is_file()

    @property
    def reranker(self) -> Path:
        """The reranker's artifact, of a pipeline."""
        return self.folder / RERANKER_FOLDER

    def read_times(self) -> LatencyTable | PairTable:
        """Return the service times of its levels, of a pipeline of its pairs; that loads its models and its index."""
        setup = {name: self.handler[name] for name in ("threads", "backend", "precision") if name in self.handler}
        table, chosen = choose_setup(self.artifact, **setup)
        if not self.is_pipeline:
            return table
        stages = [(ElasticModel.from_pretrained(part), choose_setup(part, **setup)[0])
                  for part in (self.artifact, self.reranker)]  # fmt: skip
        passages = PassageTexts(self.folder / PASSAGES_FOLDER)
        index = PassageIndex.load(self.folder / "index", memory_mapped=True)
        return pair_table(read_pairs(self.folder / PAIRS_FILE), *stages, index, passages, backend=chosen.backend)

    @property
    def largest(self) -> Choice:
        return self.levels[0]

    @property
    def smallest(self) -> Choice:
        return self.levels[-1]

    def serve(self, policy: str, budget_ms: float, job_queue_size: int) -> TorchServe:
        """Return a server of this archive under a policy."""
        return TorchServe(
            {self.name: self.folder},
            batch_size=self.batch_size,
            workers=self.workers,
            max_batch_delay_ms=self.max_batch_delay_ms,
            job_queue_size=job_queue_size,
            config=QUIET,
            handler={"policy": policy, "latency_budget_ms": budget_ms},
        )
