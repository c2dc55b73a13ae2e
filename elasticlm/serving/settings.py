"""The handler's settings: section `handler` of model-config.yaml as a frozen dataclass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, get_args, get_type_hints

from elasticlm import backend as backends
from elasticlm.errors import InputError
from elasticlm.hints import unknown
from elasticlm.schedule.policies import ALPHA, Policy, parse_policy

LATE = ("answer", "reject")
BACKENDS = ("auto", *backends.BACKENDS)
PRECISIONS = ("auto", *backends.PRECISIONS["onnx"])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What model-config.yaml says in its section `handler`; the template there explains each to its users."""

    latency_budget_ms: float | None = None
    """T: a request should be answered within it, counted from its arrival. None: the policy says it."""
    policy: str = "slack"
    """`slack`, `queue` or `fixed:LEVEL`; a `t=` or `alpha=` in it stands above the two settings."""
    alpha: float = ALPHA
    """Share of T that `slack` plans with."""
    late: str = "answer"
    """A request that is older than its budget before work begins: `answer` it, or `reject` it with 504."""
    threads: int = 1
    """Threads of PyTorch and of the index, per worker."""
    backend: str = "auto"
    """What runs a level: `torch` or `onnx`; `auto` takes the fastest that was measured and is there."""
    precision: str = "auto"
    """Of weights and products: `fp32`, or `int8` where that was exported; `auto` as with the backend."""
    max_tokens: int | None = None
    """Length limit of queries and pairs in tokens, below the artifact's own. Passages keep theirs."""
    max_passages: int = 100
    """Most passages in one request for scores."""
    max_k: int = 1000
    """Most hits in one search."""
    max_body_bytes: int = 256 * 1024
    """Largest request body."""
    overhead_ms: float = 2.0
    """r: what TorchServe itself adds to a request."""
    profile_on_start: bool = False
    """Measure a few runs of each level before READY and scale the latency table to them."""
    management_url: str = "http://127.0.0.1:8081"
    """TorchServe's management API, which knows the queue's depth; empty: do not ask."""
    management_key_file: str | None = None
    """The key_file.json that TorchServe writes where token authorisation is on."""
    live_file: str | None = None
    """A YAML file with latency_budget_ms, policy, alpha or late, read again when it changes (see elasticlm.serving.live_settings)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name)))
        _within("latency_budget_ms", self.latency_budget_ms, above=0)
        _within("alpha", self.alpha, above=0, most=1)
        _within("overhead_ms", self.overhead_ms, least=0)
        for name in ("threads", "max_passages", "max_k", "max_body_bytes"):
            _within(name, getattr(self, name), least=1)
        _within("max_tokens", self.max_tokens, least=3)
        for name, allowed in (("late", LATE), ("backend", BACKENDS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"handler.{name}: {unknown('value', getattr(self, name), allowed)}")
        if (self.backend, self.precision) == ("torch", "int8"):
            raise InputError("handler.precision is 'int8', which needs the backend onnx")
        if self.management_url and not self.management_url.startswith("http://"):
            raise InputError(f"handler.management_url is {self.management_url!r}, expected http://HOST:PORT or nothing")
        self.parsed_policy()

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | None) -> "Settings":
        """Read the section `handler`. Raises InputError on an unknown key, a wrong type, a value out of range."""
        if section is not None and not isinstance(section, Mapping):
            raise InputError(f"handler: expected settings (name: value), found {type(section).__name__}")
        known = {field.name for field in fields(cls)}
        given = {str(name): value for name, value in (section or {}).items()}
        for name in given:
            if name not in known:
                raise InputError(f"model-config.yaml, section handler: {unknown('setting', name, known)}")
        return cls(**given)

    def parsed_policy(self) -> Policy:
        """The policy with its budget and alpha filled in from the settings."""
        try:
            return parse_policy(self.policy, default_budget_ms=self.latency_budget_ms, default_alpha=self.alpha)
        except InputError as error:
            raise InputError(f"handler.policy: {error}") from None

    @property
    def budget_ms(self) -> float:
        """T, from the policy or the setting; infinite where neither says one."""
        stated = self.parsed_policy().budget_ms or self.latency_budget_ms
        return math.inf if stated is None else stated


def _typed(name: str, value: Any) -> Any:
    """Return the value as its field's type; whole numbers do as floats, nothing else is converted."""
    hint = get_type_hints(Settings)[name]
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and str in allowed and type(None) not in allowed:
        return ""  # `management_url:` with nothing behind it
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
