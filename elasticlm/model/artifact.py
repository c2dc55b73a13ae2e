"""The artifact folder (format_version 1): what a level is, the largest level's weights, the tokenizer.

    config.json         a Hugging Face configuration, model_type "elastic_bert", with the fields of ElasticBertConfig
    model.safetensors   weights of the largest level only, units in rank order
    tokenizer.json ...  as saved by the Hugging Face tokenizer
    latency.csv         service times a level (see elasticlm.schedule.latency), written by ``elasticlm profile``
    quality.json        measured quality a level, written by ``elasticlm evaluate --save``
    onnx/               graphs a level, written by ``elasticlm export --onnx`` (see elasticlm.backend.onnx_runtime)

Nothing in it is a pickle: an artifact from a stranger is safe to load.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from elasticlm.errors import InputError
from elasticlm.model.structure import ElasticStructure, parse_level

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, LATENCY_FILE, QUALITY_FILE = (
    "config.json",
    "model.safetensors",
    "latency.csv",
    "quality.json",
)
TASKS = ("embed", "score", "classify")
POOLINGS = ("mean", "cls")


@strict
class ElasticBertConfig(BertConfig):
    """A BERT configuration that knows its levels.

    Fields beyond BertConfig's:
        task: "embed", "score" or "classify".
        pooling, normalize: how hidden states become a vector ("mean" or "cls"), and whether it has length 1.
        prompts: text put before a "query" and a "passage".
        max_tokens: length limit of a "query", a "passage" and a "pair", in tokens with the special ones.
        levels: ``{"50": {"heads": [a number a layer], "neurons": [..]}, ...}``, nested.
        teacher: ``{"name", "sha256"}`` of what was pruned.
        labels: label names of a classifier.
        passages: ``{"encoder": "teacher"|"largest", "fingerprint"}``: which index the queries go with.
        calibration: of a reranker, ``{"50": [a, b], ...}``, a > 0: a passage is relevant with sigmoid(a score + b).
        fusion: of a reranker, ``{"50": weight, ...}``, weight >= 0: of the first stage beside it (see elasticlm.retrieval.score_fusion).
    """

    model_type = "elastic_bert"

    format_version: int = FORMAT_VERSION
    task: str = "embed"
    pooling: str = "cls"
    normalize: bool = False
    prompts: dict[str, str] | None = None
    max_tokens: dict[str, int] | None = None
    levels: dict[str, dict[str, list[int]]] | None = None
    teacher: dict[str, str | None] | None = None
    labels: list[str] | None = None
    passages: dict[str, str | None] | None = None
    calibration: dict[str, list[float]] | None = None
    fusion: dict[str, float] | None = None

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


AutoConfig.register(ElasticBertConfig.model_type, ElasticBertConfig)


def read_config(folder: str | Path) -> ElasticBertConfig:
    """Read and validate config.json. Raises InputError that names the file and the field."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: no elastic model here (there is no {CONFIG_FILE})")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        model_type = fields.get("model_type")
        if model_type != ElasticBertConfig.model_type:
            raise InputError(f"model_type is {model_type!r}, expected {ElasticBertConfig.model_type!r}; "
                             "make an elastic model with `elasticlm prune`")  # fmt: skip
        if fields.get("format_version") != FORMAT_VERSION:
            raise InputError(f"format_version is {fields.get('format_version')!r}, this release reads {FORMAT_VERSION}")
        config = ElasticBertConfig.from_dict(fields)
        validate(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # whatever JSON and the strict configuration have to say
        raise InputError(f"{file}: not a valid configuration ({error})") from None
    return config


def validate(config: ElasticBertConfig) -> ElasticStructure:
    """Return the structures of a configuration; raises InputError that names the field at fault."""
    structures = ElasticStructure.from_json(config.levels or {})
    largest = structures[structures.largest]
    if largest.layers != config.num_hidden_layers:
        raise InputError(f"levels: {largest.layers} layers, num_hidden_layers is {config.num_hidden_layers}")
    if max(largest.heads) > config.num_attention_heads or max(largest.neurons) > config.intermediate_size:
        raise InputError("levels: a layer keeps more heads or neurons than the teacher has")
    if config.task not in TASKS:
        raise InputError(f"task is {config.task!r}, expected one of {', '.join(TASKS)}")
    if config.pooling not in POOLINGS:
        raise InputError(f"pooling is {config.pooling!r}, expected one of {', '.join(POOLINGS)}")
    if config.task == "classify" and not config.labels:
        raise InputError("labels: a classifier needs its label names")
    for name, fitted in (config.calibration or {}).items():
        if parse_level(name) not in structures or len(fitted) != 2 or not fitted[0] > 0:
            raise InputError(f"calibration.{name}: expected [a, b] of a level, a > 0")
    for name, weight in (config.fusion or {}).items():
        if parse_level(name) not in structures or not 0 <= weight < math.inf:
            raise InputError(f"fusion.{name}: expected the weight of a level, 0 or more")
    limits = config.max_tokens or {}
    for kind in ("query", "passage", "pair"):
        if not 2 < limits.get(kind, 0) <= config.max_position_embeddings:
            raise InputError(f"max_tokens.{kind} is {limits.get(kind)}, expected 3 to {config.max_position_embeddings}")
    if (config.passages or {}).get("encoder") not in (None, "teacher", "largest"):
        raise InputError('passages.encoder: expected "teacher" or "largest"')
    return structures


def read_weights(folder: str | Path, expected: Mapping[str, Tensor], *, others: bool = False) -> dict[str, Tensor]:
    """Read model.safetensors and check names and shapes against ``expected``; raises InputError.

    Args:
        others: the file may hold other tensors too, which are left where they are.
    """
    file = Path(folder) / WEIGHTS_FILE
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with safetensors.safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            weights = {name: tensors.get_tensor(name) for name in names if name in expected or not others}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated or not a safetensors file ({error})") from None
    if missing := sorted(set(expected) - set(weights)):
        raise InputError(f"{file}: no tensor {missing[0]!r} ({len(missing)} missing)")
    if foreign := sorted(set(weights) - set(expected)):
        raise InputError(f"{file}: tensor {foreign[0]!r} does not belong to this model ({len(foreign)} foreign)")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise InputError(f"{file}: {name} has shape {list(weights[name].shape)}, levels need {list(tensor.shape)}")
    return weights


def write_weights(folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors."""
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(tensors, Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of an artifact or teacher folder; raises InputError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from None
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: needs a fast tokenizer (tokenizer.json)")
    return tokenizer


def fingerprint(config: ElasticBertConfig, weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that decides a passage's vector: weights, tokenizer, pooling, normalize, prompts, max_tokens."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    settings: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for call_setting in ("truncation", "padding"):  # left behind by the last call
        settings.pop(call_setting, None)
    settings = {"tokenizer": settings, "pooling": config.pooling, "normalize": config.normalize,
                "prompts": config.prompts, "max_tokens": config.max_tokens}  # fmt: skip
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
