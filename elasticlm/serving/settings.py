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
    """The section `handler` of model-config.yaml; the template in handlers/ explains each setting to users."""

    latency_budget_ms: float | None = None
    """T: time within which a request should be answered, counted from its arrival. None: taken from the policy."""
    policy: str = "slack"
    """`slack`, `queue` or `fixed:LEVEL`; `t=` and `alpha=` in it override latency_budget_ms and alpha."""
    alpha: float = ALPHA
    """Share of T that `slack` plans with."""
    late: str = "answer"
    """What to do with a request that is older than its budget on arrival of its batch: `answer` or `reject` (504)."""
    threads: int = 1
    """Threads of PyTorch and of the index, per worker."""
    backend: str = "auto"
    """Backend that runs a level: `torch` or `onnx`; `auto` takes the fastest one that was measured and is available."""
    precision: str = "auto"
    """Precision of weights and matrix products: `fp32`, or `int8` if exported; `auto` works as for the backend."""
    max_tokens: int | None = None
    """Length limit of queries and pairs in tokens, below the artifact's limit. It does not apply to passages."""
    max_passages: int = 100
    """Maximum number of passages in one scoring request."""
    max_k: int = 1000
    """Maximum number of hits in one search."""
    max_body_bytes: int = 256 * 1024
    """Maximum size of a request body."""
    overhead_ms: float = 2.0
    """r: time that TorchServe adds to the service time of a request."""
    profile_on_start: bool = False
    """Measure a few runs of each level before READY and scale the latency table to them."""
    management_url: str = "http://127.0.0.1:8081"
    """TorchServe's management API, which reports the queue depth; empty: not used."""
    management_key_file: str | None = None
    """The key_file.json that TorchServe writes if token authorization is on."""
    live_file: str | None = None
    """A YAML file that overrides latency_budget_ms, policy, alpha and late (see elasticlm.serving.live_settings)."""

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
            raise InputError(
                f"handler.management_url is {self.management_url!r}, expected http://HOST:PORT or an empty value"
            )
        self.parsed_policy()

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | None) -> "Settings":
        """Read the section `handler`. Raises InputError for an unknown name, a wrong type or a value out of range."""
        if section is not None and not isinstance(section, Mapping):
            raise InputError(f"handler: expected settings (name: value), found {type(section).__name__}")
        names = {field.name for field in fields(cls)}
        given = {str(name): value for name, value in (section or {}).items()}
        for name in given:
            if name not in names:
                raise InputError(f"model-config.yaml, section handler: {unknown('setting', name, names)}")
        return cls(**given)

    def parsed_policy(self) -> Policy:
        """Return the policy, with budget and alpha filled in from the settings."""
        try:
            return parse_policy(self.policy, default_budget_ms=self.latency_budget_ms, default_alpha=self.alpha)
        except InputError as error:
            raise InputError(f"handler.policy: {error}") from None

    @property
    def budget_ms(self) -> float:
        """T, from the policy or the setting; infinite if neither sets it."""
        budget_ms = self.parsed_policy().budget_ms or self.latency_budget_ms
        return math.inf if budget_ms is None else budget_ms


def _typed(name: str, value: Any) -> Any:
    """Return the value if it has the field's type. Integers are accepted as floats; nothing else is converted."""
    hint = get_type_hints(Settings)[name]
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
