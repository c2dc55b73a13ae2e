"""Loading Hugging Face models from local folders, with errors of one line."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model.configuration import Head
from elasticlm.model.heads import HEAD_PREFIX

BUFFERS = ("position_ids", "token_type_ids")
"""Entries of older checkpoints that are no weights."""


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
        raise InputError(f"{folder}: no weights for {missing[0]!r} ({len(missing)} missing)")
    body = f"{kind.base_model_prefix}."
    foreign = sorted(name for name in loading["unexpected_keys"]
                     if name.removeprefix(body).startswith(tuple(complete)) and not name.endswith(BUFFERS))  # fmt: skip
    if foreign:
        raise InputError(f"{folder}: {foreign[0]!r} is not part of a {kind.__name__}: the model is of another "
                         f"architecture, which is not supported ({len(foreign)} such weights)")  # fmt: skip
    return model.eval()


def head_of(
    folder: str | Path, config: Any, layers: Mapping[str, nn.Linear], *, activation: str
) -> tuple[Head, dict[str, Tensor]]:
    """Return the configuration and the weights of a sequence classification head.

    Args:
        config: Hugging Face's; names the labels.
        layers: "pooler" and "output".
        activation: between the two.

    Raises InputError on problems that are neither scores nor one class out of several.
    """
    labels = [config.id2label[i] for i in range(config.num_labels)]
    if config.problem_type == "multi_label_classification" or (config.problem_type == "regression" and len(labels) > 1):
        raise InputError(f"{folder}: problem_type {config.problem_type!r} with {len(labels)} labels is not supported, "
                         "only a single score or one class out of several")  # fmt: skip
    weights = {f"{HEAD_PREFIX}{name}.{part}": weight for name, layer in layers.items()
               for part, weight in layer.state_dict().items()}  # fmt: skip
    return Head("pooler", tuple(labels) if len(labels) > 1 else (), activation), weights


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
