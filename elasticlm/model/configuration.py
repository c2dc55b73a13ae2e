"""The configuration of an elastic model: config.json of an artifact, as typed values.

``ElasticConfig`` is a Hugging Face configuration (model_type "elastic"). Whatever is not a number or a name is a small
frozen dataclass with ``from_json`` and ``to_json``; a field that is null in the file is the empty value of its type.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from elasticlm.errors import InputError
from elasticlm.model import POOLINGS
from elasticlm.model.structure import Level, Structure, level_name, parse_level

FORMAT_VERSION = 2
TASKS = ("embed", "score", "classify")
ACTIVATIONS = ("linear", "tanh", "relu", "gelu", "sigmoid", "silu")
"""Names of activations of heads and Dense modules, as in transformers.activations; "linear" is the identity."""
ENCODERS = ("teacher", "largest")


class _Part:
    """A part of the configuration that is one JSON object; null means all defaults."""

    @classmethod
    def from_json(cls, value: Any, name: str) -> Self:
        """Read the part from parsed JSON. Raises InputError that names the field."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping | None):
            raise InputError(f"{name}: expected an object, found {value!r}")
        known = cls.__dataclass_fields__  # type: ignore[attr-defined]
        if unknown := [key for key in value or {} if key not in known]:
            raise InputError(f"{name}: unknown field {unknown[0]!r} (allowed: {', '.join(known)})")
        try:
            return cls(**(value or {}))
        except InputError as error:
            raise InputError(f"{name}.{error}") from None

    def to_json(self) -> dict[str, Any] | None:
        """The part as plain JSON; null where it is empty."""
        return asdict(self) if self != type(self)() else None  # type: ignore[call-overload]


def _check(name: str, value: Any, *kinds: type) -> None:
    if type(value) not in kinds:
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise InputError(f"{name} is {value!r}, expected {wanted}")


@dataclass(frozen=True)
class Prompts(_Part):
    """Text that is put before a query and before a passage."""

    query: str = ""
    passage: str = ""

    def __post_init__(self) -> None:
        for kind in ("query", "passage"):
            _check(kind, getattr(self, kind), str)

    def of(self, kind: str) -> str:
        """The prompt of a "query" or a "passage"."""
        return {"query": self.query, "passage": self.passage}[kind]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MaxTokens(_Part):
    """Length limits of a query, a passage and a pair, in tokens, special tokens included. 0: not set."""

    query: int = 0
    passage: int = 0
    pair: int = 0

    def __post_init__(self) -> None:
        for kind in ("query", "passage", "pair"):
            _check(kind, getattr(self, kind), int)

    def of(self, kind: str) -> int:
        """The limit of a "query", a "passage" or a "pair"."""
        return {"query": self.query, "passage": self.passage, "pair": self.pair}[kind]


@dataclass(frozen=True)
class TeacherReference(_Part):
    """What was pruned: a folder or hub name, and the SHA-256 of its weights file."""

    name: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        _check("name", self.name, str, type(None))
        _check("sha256", self.sha256, str, type(None))


@dataclass(frozen=True)
class Head(_Part):
    """What turns hidden states into scores or logits; no kind: the model has no head and gives vectors.

    kind "linear" is one linear layer on the hidden state of the first token. kind "pooler" is the head that sequence
    classification models of Hugging Face have: a dense layer with an activation on that state (BERT's pooler), then the
    linear layer. ``labels`` name a classifier's outputs; a single label names the value of a regression.

    ModernBERT's head may see the mean of the hidden states instead (``pooling`` "mean"), and has a LayerNorm with
    ``norm_eps`` behind the activation.
    """

    kind: str | None = None
    labels: tuple[str, ...] = ()
    activation: str | None = None
    pooling: str = "cls"
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, "linear", "pooler"):
            raise InputError(f"kind is {self.kind!r}, expected 'linear', 'pooler' or null")
        if self.activation not in (ACTIVATIONS if self.kind == "pooler" else (None,)):
            expected = ", ".join(ACTIVATIONS) if self.kind == "pooler" else "null"
            raise InputError(f"activation of a head of kind {self.kind!r} is {self.activation!r}, expected {expected}")
        if self.pooling not in (POOLINGS if self.kind == "pooler" else ("cls",)):
            raise InputError(f"pooling of a head of kind {self.kind!r} is {self.pooling!r}, expected 'cls'"
                             + (" or 'mean'" if self.kind == "pooler" else ""))  # fmt: skip
        _check("norm_eps", self.norm_eps, float, type(None))
        if self.norm_eps is not None and self.kind != "pooler":
            raise InputError(f"norm_eps: a head of kind {self.kind!r} has no norm")
        _check("labels", self.labels, list, tuple, type(None))
        object.__setattr__(self, "labels", tuple(self.labels or ()))
        for label in self.labels:
            _check("labels", label, str)

    def to_json(self) -> dict[str, Any] | None:
        if self.kind is None:
            return None
        fields = {"kind": self.kind, "labels": list(self.labels) or None}
        others = {name: getattr(self, name) for name in ("activation", "pooling", "norm_eps")}
        return fields | {name: value for name, value in others.items() if value != getattr(Head, name)}


@dataclass(frozen=True)
class DenseLayer(_Part):
    """A linear layer after pooling, with its activation (a Dense module of sentence-transformers)."""

    in_features: int = 0
    out_features: int = 0
    bias: bool = True
    activation: str = "linear"

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features"):
            _check(name, getattr(self, name), int)
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 1 or more")
        _check("bias", self.bias, bool)
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation is {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Passages(_Part):
    """Which vectors the queries go with.

    ``encoder``: "teacher", or "largest" for the model's own largest level; None where there are no passages.
    ``fingerprint``: of what encodes them (see elasticlm.model.artifact.fingerprint).
    """

    encoder: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.encoder not in (None, *ENCODERS):
            raise InputError(f"encoder is {self.encoder!r}, expected one of {', '.join(ENCODERS)}")
        _check("fingerprint", self.fingerprint, str, type(None))


class _PerLevel(_Part):
    """Something that was fitted for each level, by the level's name."""

    by_level: Mapping[str, Any]

    @classmethod
    def from_json(cls, value: Any, name: str) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping | None):
            raise InputError(f"{name}: expected an object with levels, found {value!r}")
        try:
            return cls(value or {})  # type: ignore[call-arg]
        except InputError as error:
            raise InputError(f"{name}.{error}") from None

    def __bool__(self) -> bool:
        return bool(self.by_level)

    def to_json(self) -> dict[str, Any] | None:
        return dict(self.by_level) or None

    def only(self, names: Mapping[str, Any]) -> Self:
        """Without the levels that are not among these names."""
        return type(self)({name: value for name, value in self.by_level.items() if name in names})  # type: ignore[call-arg]


@dataclass(frozen=True)
class Calibration(_PerLevel):
    """Of a reranker: a passage with score s at a level is relevant with probability sigmoid(a s + b), a > 0."""

    by_level: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, pair in self.by_level.items():
            numbers = isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair))
            if not numbers or not pair[0] > 0:
                raise InputError(f"{name}: expected [a, b] of a level, a > 0")
        object.__setattr__(self, "by_level", {name: tuple(pair) for name, pair in self.by_level.items()})

    def of(self, level: Level) -> tuple[float, float] | None:
        """(a, b) of a level; None where it was not calibrated."""
        return self.by_level.get(level_name(level))

    def to_json(self) -> dict[str, Any] | None:
        return {name: list(pair) for name, pair in self.by_level.items()} or None


@dataclass(frozen=True)
class Fusion(_PerLevel):
    """Of a reranker: the weight, 0 or more, of the first stage's scores (see elasticlm.retrieval.score_fusion)."""

    by_level: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in self.by_level.items():
            if not _is_number(weight) or not weight >= 0:
                raise InputError(f"{name}: expected the weight of a level, 0 or more")

    def of(self, level: Level) -> float:
        """The weight at a level; 0 where it was not fitted."""
        return self.by_level.get(level_name(level), 0.0)


@strict
class ElasticConfig(PreTrainedConfig):
    """A Hugging Face configuration that knows its levels.

    Fields of the encoder's own family that are not listed here (the width of its norms' epsilon and the like) are kept
    as further attributes, under the names that the family's own configuration has.

    Attributes:
        family: the encoder family, see elasticlm.model.families.
        task: "embed", "score" or "classify".
        pooling, normalize: how hidden states become a vector ("mean" or "cls"), and whether it has length 1.
        dense: the linear layers after pooling, a tuple of DenseLayer; normalisation comes after them.
        levels: ``{"50": {"heads": [one number per layer], "neurons": [..]}, ...}``, nested. ``{"100": {"weights":
            "teacher"}}``: level 100 is the teacher, with weights of its own.
        graphs: SHA-256 of the files of the ONNX graphs, by precision and name, see elasticlm.backend.graph_hashes.
    """

    model_type = "elastic"
    PARTS: ClassVar[dict[str, type[_Part]]] = {
        "prompts": Prompts,
        "max_tokens": MaxTokens,
        "teacher": TeacherReference,
        "head": Head,
        "passages": Passages,
        "calibration": Calibration,
        "fusion": Fusion,
    }

    format_version: int = FORMAT_VERSION
    family: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    task: str = "embed"
    pooling: str = "cls"
    normalize: bool = False
    dense: Any = None
    levels: dict[str, dict[str, Any]] | None = None
    graphs: dict[str, dict[str, str]] | None = None
    prompts: Any = None
    max_tokens: Any = None
    teacher: Any = None
    head: Any = None
    passages: Any = None
    calibration: Any = None
    fusion: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, part in self.PARTS.items():
            setattr(self, name, part.from_json(getattr(self, name), name))
        if not isinstance(self.dense, list | tuple | None):
            raise InputError(f"dense: expected a list of layers, found {self.dense!r}")
        self.dense = tuple(DenseLayer.from_json(layer, f"dense.{i}") for i, layer in enumerate(self.dense or ()))

    @property
    def vector_size(self) -> int:
        """Length of the vectors of an encoder: that of the last Dense module, or of the hidden states."""
        return self.dense[-1].out_features if self.dense else self.hidden_size

    @property
    def whole(self) -> Structure:
        """The teacher's structure: all heads and neurons."""
        return Structure((self.num_attention_heads,) * self.num_hidden_layers,
                         (self.intermediate_size,) * self.num_hidden_layers)  # fmt: skip

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names of a classifier; empty for other tasks."""
        return self.head.labels

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON; those not in use are null."""
        fields = super().to_dict()
        for name, part in self.PARTS.items():  # Hugging Face may have set plain JSON in the meantime
            fields[name] = part.from_json(getattr(self, name), name).to_json()
        fields["dense"] = [DenseLayer.from_json(layer, "dense").to_json() for layer in self.dense or ()] or None
        fields["graphs"] = {}  # whoever writes graphs into the folder lists them then
        for unused in ("id2label", "label2id"):  # Hugging Face fills them in for every model
            fields.pop(unused, None)
        return fields


class Format1Config(ElasticConfig):
    """Format 1 had this model_type; Hugging Face's tokenizers look it up."""

    model_type = "elastic_bert"

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("labels", None)  # they are part of the head now
        super().__post_init__(**kwargs)


AutoConfig.register(ElasticConfig.model_type, ElasticConfig)
AutoConfig.register(Format1Config.model_type, Format1Config)


def from_format_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json of format 1 as format 2 has them."""
    new = dict(fields)
    labels, task = new.pop("labels", None), new.get("task", "embed")
    new["head"] = None if task == "embed" else {"kind": "linear", "labels": labels}
    return new | {"model_type": ElasticConfig.model_type, "format_version": FORMAT_VERSION, "family": "bert"}


def check_fields(config: ElasticConfig) -> None:
    """Raise InputError, with the field's name, where a field does not go with the others."""
    if config.task not in TASKS:
        raise InputError(f"task is {config.task!r}, expected one of {', '.join(TASKS)}")
    if config.pooling not in POOLINGS:
        raise InputError(f"pooling is {config.pooling!r}, expected one of {', '.join(POOLINGS)}")
    width = config.hidden_size
    for i, layer in enumerate(config.dense):
        if config.task != "embed":
            raise InputError(f"dense: a model with task {config.task!r} has none")
        if layer.in_features != width:
            raise InputError(f"dense.{i}: takes in vectors of {layer.in_features} numbers, expected {width}")
        width = layer.out_features
    if (config.task == "embed") != (config.head.kind is None):
        raise InputError(f"head: a model with task {config.task!r} has {'no' if config.task == 'embed' else 'a'} head")
    if config.task == "classify" and not config.head.labels:
        raise InputError("head.labels: a classifier needs its label names")
    for field_name in ("calibration", "fusion"):
        for name in getattr(config, field_name).by_level:
            if level_name(parse_level(name)) not in (config.levels or {}):
                raise InputError(f"{field_name}.{name}: there is no such level")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
