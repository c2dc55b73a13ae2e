"""Teachers: encoders from a folder or the hub, loaded as elastic models with the single level 100."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model import POOLINGS, artifact
from elasticlm.model.configuration import ElasticConfig, Format1Config, MaxTokens, Passages, TeacherReference
from elasticlm.model.download import resolve_model
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.families import FAMILIES, family_of
from elasticlm.model.families.base import CLASSIFIER, Classifier, EncoderFamily
from elasticlm.model.folder import CONFIG_FILE
from elasticlm.model.sentence_settings import SentenceFiles, read_object
from elasticlm.model.structure import WHOLE, ElasticStructure
from elasticlm.model.tokenizing import lower_cased
from elasticlm.model.transformers_loading import sha256_weights


def load_model(
    name: str | Path,
    *,
    pooling: str | None = None,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
) -> ElasticModel:
    """Load an artifact or a teacher, whichever the folder or hub name holds.

    A teacher becomes an ElasticModel whose only level is 100, with the teacher's weights and settings. A sequence
    classification model is a reranker if it has one label, else a classifier. Every other model is an encoder:
    pooling, Dense modules, normalisation, prompts, lower-casing and lengths come from sentence-transformers' files.
    Where these name no pooling, that of the family is taken, with a warning. An artifact can be a teacher too, with its
    largest level.

    Args:
        pooling: "mean" or "cls", instead of what the teacher's files say.
        query_prompt, passage_prompt: likewise; texts put before each query and passage.

    Raises InputError where the encoder's family is not supported, its files are incomplete, or settings were given for
    a model that has its own (an artifact) or none (a head).
    """
    folder = resolve_model(str(name))
    own = {"--pooling": pooling, "--query-prompt": query_prompt, "--passage-prompt": passage_prompt}
    given = [option for option, value in own.items() if value is not None]
    if is_artifact(folder):
        if given:
            raise InputError(f"{name} is an elastic model and has its own settings: leave out {given[0]}")
        return ElasticModel.from_pretrained(folder)
    files = SentenceFiles.of(folder)
    family = _family(name, files.transformer)
    classifier = None if files.pools else _classifier(family, files.transformer)
    if classifier is not None and given:
        raise InputError(f"{name} has a classification head, so {given[0]} does not apply")
    encoder = family.load(files.transformer) if classifier is None else classifier.encoder
    try:
        fields = family.config_fields(encoder.config)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    tokenizer = artifact.read_tokenizer(files.transformer)
    if files.lower_cases:
        tokenizer = lower_cased(tokenizer)
    longest = min(tokenizer.model_max_length, family.longest(ElasticConfig(**fields)))
    fields |= files.fields(longest)
    if classifier is not None:
        fields |= {"task": "classify" if classifier.head.labels else "score", "head": classifier.head,
                   "prompts": None, "max_tokens": MaxTokens(longest, longest, longest)}  # fmt: skip
    else:
        prompts = {"query": query_prompt, "passage": passage_prompt}
        fields["prompts"] = replace(fields["prompts"], **{k: v for k, v in prompts.items() if v is not None})
        fields["pooling"] = pooling or fields.get("pooling") or _family_pooling(name, family)
        files.check_prompts(fields["prompts"], fields["pooling"])
    config = ElasticConfig(**fields, teacher=TeacherReference(str(name), sha256_weights(files.transformer)))
    config.levels = ElasticStructure({WHOLE: config.whole}).to_json()
    model = ElasticModel.without_weights(config, tokenizer)
    head = {} if classifier is None else dict(classifier.weights)
    model.load_state_dict(family.elastic_weights(encoder) | files.dense_weights() | head, assign=True)
    if classifier is None:
        config.passages = Passages("teacher", model.fingerprint())
    return model


def load_encoder(folder: str | Path, **options: Any) -> nn.Module:
    """Load the Hugging Face encoder of a teacher's folder, of whichever family."""
    transformer = SentenceFiles.of(Path(folder)).transformer
    return _family(folder, transformer).load(transformer, **options)


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
    encoder = teacher_of(model, name)
    if not encoder.has_fingerprint(passages.fingerprint):
        raise InputError(f"{name} is not the teacher that this model was made from (another fingerprint)")
    return encoder


def teacher_of(model: ElasticModel, name: str | Path) -> ElasticModel:
    """Load a teacher for an artifact.

    If it is what the artifact was made from, it gets the pooling and the prompts that the artifact has, which may have
    been given by options then; any other model is loaded as it is.
    """
    config, folder = model.config, resolve_model(str(name))
    if config.task != "embed" or is_artifact(folder):
        return load_model(name)
    if sha256_weights(SentenceFiles.of(folder).transformer) != config.teacher.sha256:
        return load_model(name)
    return load_model(name, pooling=config.pooling, query_prompt=config.prompts.query,
                      passage_prompt=config.prompts.passage)  # fmt: skip


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds an elastic model (and not a teacher, or nothing)."""
    config = read_object(folder / CONFIG_FILE)
    return config.get("model_type") in (ElasticConfig.model_type, Format1Config.model_type)


def _family(name: str | Path, folder: Path) -> EncoderFamily:
    """The family of a teacher's encoder. Raises InputError on others, and on models with code of their own."""
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: no model here (there is no {CONFIG_FILE})")
    config = read_object(folder / CONFIG_FILE)
    own_code = [code for kind, code in (config.get("auto_map") or {}).items() if kind.startswith("AutoModel")]
    if own_code:
        raise InputError(f"{name}: the model is defined by code of its own ({own_code[0]}), which is not run; "
                         f"supported encoder families: {', '.join(FAMILIES)}")  # fmt: skip
    try:
        return family_of(config.get("model_type", ""))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _classifier(family: EncoderFamily, folder: Path) -> Classifier | None:
    """The encoder with its trained head, where the folder has one."""
    architectures = read_object(folder / CONFIG_FILE).get("architectures") or []
    return family.load_classifier(folder) if family.prefix + CLASSIFIER in architectures else None


def _family_pooling(name: str | Path, family: EncoderFamily) -> str:
    say(f"warning: {name}: no file names the pooling; {family.pooling} is assumed. If the model was trained with "
        f"another one, choose it with --pooling ({' or '.join(POOLINGS)})")  # fmt: skip
    return family.pooling
