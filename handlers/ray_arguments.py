"""The arguments of the Ray Serve application, and what it reads from archives (see elasticlm.handlers.ray_app)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from elasticlm.handlers.torchserve_settings import read_handler_section
from elasticlm.serving.settings import Settings

LEAST_WAIT_S, WAIT_IN_BUDGETS = 5.0, 4.0
"""A replica that has not answered after 4 T, at least 5 s, counts as lost."""


class Arguments(BaseModel):
    """The arguments of `serve run elasticlm.handlers.ray_app:build NAME=VALUE ...`, or of `args` in a YAML file."""

    model_config = ConfigDict(extra="forbid")

    archive: str | list[str]
    """Archives made by `elasticlm archive`, packed or unpacked; several are separated by commas. Every node needs them
    under the same path."""
    replicas: int | None = Field(None, ge=1)
    """Replicas per archive; with `max_replicas`, the number to start with (default: `min_replicas`, or 1)."""
    min_replicas: int | None = Field(None, ge=1)
    """Least number of replicas if they are scaled by demand (default: `replicas`, or 1)."""
    max_replicas: int | None = Field(None, ge=1)
    """Largest number of replicas. If it is given, replicas are scaled by demand."""
    scale_on: Literal["demand", "requests"] = "demand"
    """What the number of replicas follows: `demand` (work that arrives, see elasticlm.handlers.ray_scaling), or
    `requests`, Ray Serve's own rule (requests that are waiting or being answered)."""
    upscale_delay_s: float = Field(60.0, ge=0)
    """How long the demand has to be above 1 before a replica is added."""
    downscale_delay_s: float = Field(60.0, ge=0)
    """How long the demand has to be below 0.5 before a replica is removed."""
    max_replicas_per_node: int | None = Field(None, ge=1)
    """Largest number of replicas of an archive, and of the ingress, on one node."""
    separate_ingress: bool = False
    """Whether a single archive has an ingress too. It sends the requests of a lost replica to another one, and costs
    every request another hop between processes."""
    ingress_replicas: int = Field(1, ge=1)
    """Replicas of the ingress; one per node survives the loss of a node."""
    batch_size: int | None = Field(None, ge=1)
    """B, the maximum number of requests per forward pass (default: the archive's batchSize)."""
    queue_size: int | None = Field(None, ge=1)
    """Requests that may wait in a replica; more are refused with 503 (default: the archive's jobQueueSize per worker,
    in proportion to the latency budget)."""
    num_cpus: float | None = Field(None, gt=0)
    """CPUs that Ray reserves per replica (default: the setting `threads`)."""
    policy: str | None = None
    """Replaces the archive's policy."""
    latency_budget_ms: float | None = None
    """Replaces the archive's latency budget, in ms."""
    threads: int | None = Field(None, ge=1)
    """Replaces the archive's number of threads per replica."""
    settings: dict[str, Any] = {}
    """Replaces other settings of section `handler` of the archive's model-config.yaml."""


@dataclass(frozen=True, kw_only=True)
class ServedArchive:
    """An archive, and how it is served.

    Attributes:
        path: of the archive, packed or unpacked.
        name: the archive's name, which clients use.
        task: embed, search, score or classify.
        levels: names of its levels, largest first.
        batch_size: B.
        queue_size: requests that may wait in a replica.
        timeout_s: a replica that has answered one batch for longer is not healthy.
    """

    path: str
    name: str
    task: str
    levels: tuple[str, ...]
    settings: Settings
    batch_size: int
    queue_size: int
    timeout_s: float

    @classmethod
    def read(cls, path: Path, arguments: Arguments) -> "ServedArchive":
        """Read what an archive says of itself, and apply the arguments. Raises InputError."""
        from elasticlm.model.structure import level_name
        from elasticlm.serving.bundle import read_facts

        facts = read_facts(path)
        section = facts.config.get("handler") or {}
        packed, _ = read_handler_section(section)
        named = {name: getattr(arguments, name) for name in ("policy", "latency_budget_ms", "threads")}
        changes = arguments.settings | {name: value for name, value in named.items() if value is not None}
        settings, _ = read_handler_section(section | changes)
        per_worker = facts.config.get("jobQueueSize", 100) / (facts.config.get("minWorkers") or 1)
        in_proportion = max(1, int(per_worker * settings.budget_ms / packed.budget_ms))
        return cls(
            path=str(path.resolve()), name=facts.name, task=facts.task, levels=tuple(map(level_name, facts.levels)),
            settings=settings,
            batch_size=arguments.batch_size or facts.config.get("batchSize") or 1,
            queue_size=arguments.queue_size or in_proportion,
            timeout_s=facts.config.get("responseTimeout", 120),
        )  # fmt: skip

    @property
    def attempt_s(self) -> float:
        """How long the ingress waits for a replica."""
        return max(LEAST_WAIT_S, WAIT_IN_BUDGETS * self.settings.budget_ms / 1e3)
