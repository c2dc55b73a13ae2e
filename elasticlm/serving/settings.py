"""Settings as frozen dataclasses: those of the serving core here, those of a server next to its adapter.

All of them are in section `handler` of model-config.yaml; ``read_section`` divides them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_type_hints

from elasticlm import backend as backends
from elasticlm.errors import InputError
from elasticlm.hints import unknown
from elasticlm.schedule.policies import ALPHA, Policy, parse_policy
from elasticlm.schedule.triage import LATE

BACKENDS = ("auto", *backends.BACKENDS)
PASSAGES = ("refuse", "largest")
PRECISIONS = ("auto", *backends.PRECISIONS["onnx"])


@dataclass(frozen=True, kw_only=True)
class SettingsGroup:
    """A group of settings; their types are checked. Raises InputError."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name), hints[field.name]))

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the settings."""
        return [field.name for field in fields(cls)]

    @classmethod
    def of_section(cls, section: Mapping[str, Any]) -> Self:
        """Take the settings of this group from an archive's section `handler`, and leave those of other groups."""
        return cls(**{name: section[name] for name in cls.names() if name in section})


@dataclass(frozen=True, kw_only=True)
class Settings(SettingsGroup):
    """The settings of the serving core; the template in handlers/ explains each of them to users.

    Values in the policy replace latency_budget_ms and alpha, so that each is known in one place:

    >>> settings = Settings(policy="slack:t=100,alpha=0.5", latency_budget_ms=250)
    >>> settings.policy, settings.latency_budget_ms, settings.alpha
    ('slack', 100.0, 0.5)
    """

    latency_budget_ms: float | None = None
    """T: time within which a request should be answered, counted from its arrival. None: taken from the policy."""
    policy: str = "deadline"
    """`deadline`, `slack`, `queue` or `fixed:LEVEL`."""
    alpha: float = ALPHA
    """Share of T that `slack` plans with."""
    late: str = "shed"
    """What to do with a request that cannot be answered in time any more: `shed` refuses it (504) if others can be,
    `reject` always, `answer` never."""
    threads: int = 1
    """Threads of PyTorch and of the index, per worker."""
    backend: str = "auto"
    """Backend that runs a level: `torch` or `onnx`; `auto` takes the fastest one that was measured and is available."""
    precision: str = "auto"
    """Precision of weights and matrix products: `fp32`, or `int8` if exported; `auto` works as for the backend."""
    max_tokens: int | None = None
    """Length limit of queries and pairs in tokens, below the artifact's limit. It does not apply to passages."""
    passages: str = "refuse"
    """What to do with texts that are to be embedded as passages, if the model encodes its own: `refuse` them, or answer
    at the `largest` level whatever the load."""
    max_texts: int = 100
    """Maximum number of texts in one embedding request."""
    max_passages: int = 100
    """Maximum number of passages in one scoring request."""
    max_k: int = 1000
    """Maximum number of hits in one search."""
    max_body_bytes: int = 256 * 1024
    """Maximum size of a request body."""
    overhead_ms: float = 5.0
    """r: time that the server adds to the service time of a request. TorchServe adds 3 to 6 ms; `elasticlm signal`
    measures it."""
    trust_request_start: bool = True
    """Take the age of a request from the header X-Request-Start."""
    trust_latency_budget: bool = True
    """Let a request ask for a smaller budget with the header X-Latency-Budget-Ms."""
    trust_for_batch: bool = False
    """Let these two headers of one request lower the level of its whole batch. If false, they count for the request
    alone: it may be refused, but it lowers the level only where it has no batch mates."""
    profile_on_start: bool = False
    """Measure a few runs of each level before READY and scale the latency table to them."""
    correct_table: bool = True
    """Scale the latency table by how long batches really take, within 0.5 to 4 times."""
    live_file: str | None = None
    """A YAML file that overrides latency_budget_ms, policy, alpha and late (see elasticlm.serving.live_settings)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("latency_budget_ms", self.latency_budget_ms, above=0)
        _within("alpha", self.alpha, above=0, most=1)
        _within("overhead_ms", self.overhead_ms, least=0)
        for name in ("threads", "max_texts", "max_passages", "max_k", "max_body_bytes"):
            _within(name, getattr(self, name), least=1)
        _within("max_tokens", self.max_tokens, least=3)
        for name, allowed in (("late", LATE), ("passages", PASSAGES), ("backend", BACKENDS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"handler.{name}: {unknown('value', getattr(self, name), allowed)}")
        if (self.backend, self.precision) == ("torch", "int8"):
            raise InputError("handler.precision is 'int8', which needs the backend onnx")
        for name, value in self.parsed_policy().settings().items():
            object.__setattr__(self, name, value)

    def parsed_policy(self) -> Policy:
        """Return the policy, with budget and alpha filled in from the settings."""
        try:
            return parse_policy(self.policy, default_budget_ms=self.latency_budget_ms, default_alpha=self.alpha)
        except InputError as error:
            raise InputError(f"handler.policy: {error}") from None

    @property
    def budget_ms(self) -> float:
        """T; infinite if it is not set."""
        return math.inf if self.latency_budget_ms is None else self.latency_budget_ms


GroupT = TypeVar("GroupT", bound=SettingsGroup)
OtherT = TypeVar("OtherT", bound=SettingsGroup)


def read_section(section: Mapping[str, Any] | None, core: type[GroupT], server: type[OtherT]) -> tuple[GroupT, OtherT]:
    """Divide the section `handler` into the settings of the core and those of the server.

    Raises InputError for an unknown name, a wrong type or a value out of range.
    """
    if section is not None and not isinstance(section, Mapping):
        raise InputError(f"handler: expected settings (name: value), found {type(section).__name__}")
    given = {str(name): value for name, value in (section or {}).items()}
    known = sorted([*core.names(), *server.names()])
    for name in given:
        if name not in known:
            raise InputError(f"model-config.yaml, section handler: {unknown('setting', name, known)}")
    return core.of_section(given), server.of_section(given)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return the value if it has the field's type. Integers are accepted as floats; nothing else is converted."""
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and str in allowed and type(None) not in allowed:
        return ""  # `management_url:` without a value
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in allowed)
        raise InputError(f"handler.{name} is {value!r}, expected {wanted}")
    return value


def _within(
    name: str, value: float | None, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    if value is not None and not (above < value and least <= value <= most and math.isfinite(value)):
        low = f"above {above:g}" if above > -math.inf else f"at least {least:g}"
        high = f" and at most {most:g}" if most < math.inf else ""
        raise InputError(f"handler.{name} is {value:g}, expected {low}{high}")
