"""The artifact folder (format_version 2): what the levels are, the largest level's weights, the tokenizer.

    config.json         a Hugging Face configuration, model_type "elastic" (see elasticlm.model.configuration)
    model.safetensors   weights of the largest nested level, units in rank order
    teacher.safetensors the teacher's weights that differ from those, if level 100 is the teacher
    tokenizer.json ...  as saved by the Hugging Face tokenizer
    latency.csv         service times per level (see elasticlm.schedule.latency), written by ``elasticlm profile``
    quality.json        measured quality per level, written by ``elasticlm evaluate --save``
    onnx/               one graph per level, written by ``elasticlm export --onnx`` (see elasticlm.backend.onnx_runtime)

Nothing in it is a pickle. Format 1 (model_type "elastic_bert") is read as well.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from elasticlm.errors import InputError
from elasticlm.files import lock, new_file
from elasticlm.model.configuration import (
    FORMAT_VERSION,
    ElasticConfig,
    Format1Config,
    check_fields,
    from_format_1,
)
from elasticlm.model.families import family_of
from elasticlm.model.folder import CONFIG_FILE, WEIGHTS_FILE
from elasticlm.model.heads import HEAD_PREFIX
from elasticlm.model.structure import ElasticStructure

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel

FINGERPRINT_PREFIX = "v2:"


def read_config(folder: str | Path) -> ElasticConfig:
    """Read and validate config.json. Raises InputError that names the file and the field."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: no elastic model here (there is no {CONFIG_FILE})")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        model_type, version = fields.get("model_type"), fields.get("format_version")
        if model_type not in (ElasticConfig.model_type, Format1Config.model_type):
            raise InputError(f"model_type is {model_type!r}, expected {ElasticConfig.model_type!r}; "
                             "make an elastic model with `elasticlm prune`")  # fmt: skip
        if version not in (1, FORMAT_VERSION):
            raise InputError(f"format_version is {version!r}, this release reads 1 and {FORMAT_VERSION}")
        config = ElasticConfig.from_dict(from_format_1(fields) if version == 1 else fields)
        validate(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # whatever JSON and the configuration class report
        raise InputError(f"{file}: not a valid configuration ({error})") from None
    return config


def update_config(folder: str | Path, fields: Mapping[str, Any]) -> None:
    """Replace fields of a folder's config.json. All others stay, whatever another process has written meanwhile."""
    file = Path(folder) / CONFIG_FILE
    with lock(file, wait=True):
        updated = json.loads(file.read_text(encoding="utf-8")) | fields
        with new_file(file) as temporary:
            temporary.write_text(json.dumps(updated, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def validate(config: ElasticConfig) -> ElasticStructure:
    """Return the structures of a configuration; raises InputError that names the field at fault."""
    structures = ElasticStructure.from_json(config.levels or {}, config.whole)
    largest = structures[structures.largest]
    if largest.layers != config.num_hidden_layers:
        raise InputError(f"levels: {largest.layers} layers, num_hidden_layers is {config.num_hidden_layers}")
    if max(largest.heads) > config.num_attention_heads or max(largest.neurons) > config.intermediate_size:
        raise InputError("levels: a layer keeps more heads or neurons than the teacher has")
    check_fields(config)
    longest = family_of(config.family).longest(config)
    for kind in ("query", "passage", "pair"):
        if not 2 < config.max_tokens.of(kind) <= longest:
            raise InputError(f"max_tokens.{kind} is {config.max_tokens.of(kind)}, expected 3 to {longest}")
    return structures


def read_weights(
    folder: str | Path,
    expected: Mapping[str, Tensor],
    *,
    others: bool = False,
    name: str = WEIGHTS_FILE,
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Read a weights file in fp32 and check names and shapes against ``expected``; raises InputError.

    Args:
        others: whether the file may hold further tensors, which are not read.
        name: of the file.
        known: tensors of which copies are taken where the file does not have them.
    """
    file = Path(folder) / name
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with safetensors.safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            weights = {name: tensors.get_tensor(name).float() for name in names if name in expected or not others}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated or not a safetensors file ({error})") from None
    weights |= {name: known[name].clone() for name in expected if known and name in known and name not in weights}
    if missing := sorted(set(expected) - set(weights)):
        raise InputError(f"{file}: no tensor {missing[0]!r} ({len(missing)} missing)")
    if foreign := sorted(set(weights) - set(expected)):
        raise InputError(f"{file}: tensor {foreign[0]!r} does not belong to this model ({len(foreign)} foreign)")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise InputError(f"{file}: {name} has shape {list(weights[name].shape)}, levels need {list(tensor.shape)}")
    return weights


def write_weights(folder: str | Path, weights: Mapping[str, Tensor], name: str = WEIGHTS_FILE) -> None:
    """Write a weights file."""
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(tensors, Path(folder) / name, metadata={"format": "pt"})


def differing(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without those that are the same, name by name, as in ``others``."""
    return {name: tensor for name, tensor in weights.items() if not _same(tensor, others.get(name))}


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and (tensor is other or (tensor.shape == other.shape and torch.equal(tensor, other)))


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of an artifact or teacher folder; raises InputError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from None
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: needs a fast tokenizer (tokenizer.json)")
    return tokenizer


def fingerprint(model: "ElasticModel") -> str:
    """``v2:`` and the SHA-256 of all that decides the vector of a passage at the largest level.

    That is the encoder's weights (a head's do not count), the tokenizer, pooling, normalize, dense, and the prompt and
    length limit of passages.
    """
    config = model.config
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith(HEAD_PREFIX)}
    settings = {
        "tokenizer": _tokenizer_settings(model.tokenizer),
        "pooling": config.pooling,
        "normalize": config.normalize,
        "dense": [layer.to_json() for layer in config.dense] or None,
        "prompt": config.prompts.passage,
        "max_tokens": config.max_tokens.passage,
    }
    return FINGERPRINT_PREFIX + _digest(weights, settings)


def has_fingerprint(model: "ElasticModel", stored: str) -> bool:
    """Whether a stored fingerprint is that of this model.

    Stored values without ``v2:`` were written by format 1, which took all weights, prompts and length limits.
    """
    if stored.startswith(FINGERPRINT_PREFIX):
        return stored == fingerprint(model)
    config = model.config
    settings = {
        "tokenizer": _tokenizer_settings(model.tokenizer),
        "pooling": config.pooling,
        "normalize": config.normalize,
        "prompts": config.prompts.to_json(),
        "max_tokens": config.max_tokens.to_json(),
    }
    return stored == _digest(model.state_dict(), settings)


def _digest(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for call_setting in ("truncation", "padding"):  # left behind by the last call
        settings.pop(call_setting, None)
    return settings
