"""Teachers: encoders from a folder or the hub, loaded as elastic models with the single level 100."""

from pathlib import Path
from typing import Any

from torch import nn

from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model import artifact
from elasticlm.model.configuration import ElasticConfig, Format1Config, Passages, TeacherReference
from elasticlm.model.download import resolve_model
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.families import family_of
from elasticlm.model.folder import CONFIG_FILE
from elasticlm.model.sentence_settings import read_json, sentence_settings
from elasticlm.model.structure import ElasticStructure, Structure

WHOLE = 100


def load_model(name: str | Path) -> ElasticModel:
    """Load an artifact or a teacher, whichever the folder or hub name holds.

    A teacher becomes an ElasticModel whose only level is 100, with the teacher's weights and settings. Pooling,
    normalisation, prompts and length come from sentence-transformers' files where there are any, else cls, no
    normalisation, no prompts, and the tokenizer's limit. An artifact can be a teacher too, with its largest level.

    Raises InputError where the encoder's family is not supported or its files are incomplete.
    """
    folder = resolve_model(str(name))
    if _is_artifact(folder):
        return ElasticModel.from_pretrained(folder)
    try:
        family = family_of(_model_type(folder))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    encoder = family.load(folder)
    tokenizer = artifact.read_tokenizer(folder)
    fields = family.config_fields(encoder.config)
    whole = Structure((fields["num_attention_heads"],) * fields["num_hidden_layers"],
                      (fields["intermediate_size"],) * fields["num_hidden_layers"])  # fmt: skip
    fields |= sentence_settings(folder, min(tokenizer.model_max_length, fields["max_position_embeddings"]))
    weights = next(file for file in (folder / "model.safetensors", folder / "pytorch_model.bin") if file.exists())
    config = ElasticConfig(
        **fields,
        levels=ElasticStructure({WHOLE: whole}).to_json(),
        teacher=TeacherReference(str(name), sha256_file(weights)),
    )
    model = ElasticModel.without_weights(config, tokenizer)
    model.load_state_dict(family.elastic_weights(encoder), assign=True)
    config.passages = Passages("teacher", model.fingerprint())
    return model


def load_encoder(folder: str | Path, **options: Any) -> nn.Module:
    """Load the Hugging Face encoder of a teacher's folder, of whichever family."""
    return family_of(_model_type(Path(folder))).load(folder, **options)


def passage_encoder(model: ElasticModel, teacher: str | Path | None = None) -> ElasticModel:
    """Return the model that encodes the passages of an artifact: itself, or its teacher.

    Args:
        model: an artifact or a teacher.
        teacher: where the teacher is; None takes the name in the artifact.

    Raises InputError where the teacher's fingerprint differs from the one that the artifact was made with.
    """
    passages = model.config.passages
    if passages.encoder != "teacher" or model.has_fingerprint(passages.fingerprint):
        return model
    name = teacher or model.config.teacher.name
    if not name:
        raise InputError("this model's passages are encoded by its teacher: say where it is with --teacher")
    encoder = load_model(name)
    if not encoder.has_fingerprint(passages.fingerprint):
        raise InputError(f"{name} is not the teacher that this model was made from (another fingerprint)")
    return encoder


def _is_artifact(folder: Path) -> bool:
    return _model_type(folder) in (ElasticConfig.model_type, Format1Config.model_type)


def _model_type(folder: Path) -> str:
    config = read_json(folder / CONFIG_FILE, None)
    if config is None:
        raise InputError(f"{folder}: no model here (there is no {CONFIG_FILE})")
    return config.get("model_type", "")
