"""Loading Hugging Face models from local folders, with errors of one line."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model.configuration import Head
from elasticlm.model.heads import HEAD_PREFIX
from elasticlm.model.prefix_layers import bias_of

if TYPE_CHECKING:
    from elasticlm.model.families.base import HeadLayers

BUFFERS = ("position_ids", "token_type_ids")
"""Entries of older checkpoints that are no weights."""


class MissingWeightsError(InputError):
    """A checkpoint lacks weights.

    Attributes:
        names: of the weights.
    """

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        super().__init__(f"{folder}: no weights for {names[0]!r} ({len(names)} missing)")
        self.names = tuple(names)


def load_transformers(folder: str | Path, kind: Any, *, complete: Sequence[str] = (), **options: Any) -> Any:
    """Load a Hugging Face model of the class ``kind`` in fp32, whatever precision its weights are stored in.

    Heads in the checkpoint that ``kind`` does not have are ignored. No code from the folder is run.

    Args:
        complete: beginnings of weight names, behind that of the model's body, of which ``kind`` must have all.

    Raises InputError on weights that are missing, unreadable, or foreign to a part that must be complete.
    """
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # unused heads in a checkpoint are expected; missing weights are checked
    try:
        model, loading = kind.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, trust_remote_code=False, **options
        )
    except Exception as error:  # truncated files, wrong shapes: the library's own words
        raise InputError(f"{folder}: its weights cannot be read ({error})") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(loading["missing_keys"]):
        raise MissingWeightsError(folder, missing)
    body = f"{kind.base_model_prefix}."
    foreign = sorted(name for name in loading["unexpected_keys"]
                     if name.removeprefix(body).startswith(tuple(complete)) and not name.endswith(BUFFERS))  # fmt: skip
    if foreign:
        raise InputError(f"{folder}: {foreign[0]!r} is not part of a {kind.__name__}: the model is of another "
                         f"architecture, which is not supported ({len(foreign)} such weights)")  # fmt: skip
    return model.eval()


def head_of(folder: str | Path, model: Any, layers: "HeadLayers") -> tuple[Head, dict[str, Tensor]]:
    """Return the configuration and the weights of a Hugging Face model's sequence classification head.

    Biases that the head does not have become 0.

    Raises InputError on problems that are neither scores nor one class out of several.
    """
    config = model.config
    labels = [config.id2label[i] for i in range(config.num_labels)]
    if config.problem_type == "multi_label_classification" or (config.problem_type == "regression" and len(labels) > 1):
        raise InputError(f"{folder}: problem_type {config.problem_type!r} with {len(labels)} labels is not supported, "
                         "only a single score or one class out of several")  # fmt: skip
    names = {"pooler": layers.pooler, "norm": layers.norm, "output": layers.output}
    modules = {ours: model.get_submodule(theirs) for ours, theirs in names.items() if theirs}
    weights = {}
    for name, module in modules.items():
        weights[f"{HEAD_PREFIX}{name}.weight"] = module.weight.detach()
        weights[f"{HEAD_PREFIX}{name}.bias"] = bias_of(module).detach()
    return Head("pooler", tuple(labels) if len(labels) > 1 else (), layers.activation, layers.pooling,
                modules["norm"].eps if layers.norm else None), weights  # fmt: skip


def sha256_weights(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights file; of a checkpoint in several files, over all of them in order."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return sha256_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            shards = json.loads((folder / f"{name}.index.json").read_text("utf-8"))["weight_map"].values()
            digests = [sha256_file(folder / shard) for shard in sorted(set(shards))]
            return hashlib.sha256("".join(digests).encode()).hexdigest()
    raise InputError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")
