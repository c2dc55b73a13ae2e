"""Pooling, normalisation, prompts and length limits from the files that sentence-transformers writes."""

import json
from pathlib import Path
from typing import Any

from elasticlm.errors import InputError
from elasticlm.model.configuration import MaxTokens, Prompts

POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean"}
"""Their names for a pooling (after ``pooling_mode_``) and ours."""
SUPPORTED_MODULES = {"Transformer", "Pooling", "Normalize"}


def sentence_settings(folder: Path, longest: int) -> dict[str, Any]:
    """Return the fields of ElasticConfig that a sentence-transformers folder decides; else cls, no norm, no prompts.

    Args:
        longest: length limit of the encoder and its tokenizer, in tokens.

    Raises InputError on modules and poolings that are not supported.
    """
    modules = read_json(folder / "modules.json", [])
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if unknown := sorted(set(kinds) - SUPPORTED_MODULES):
        raise InputError(f"{folder / 'modules.json'}: a {unknown[0]} module is not supported")
    pooling = "cls"
    if "Pooling" in kinds:
        file = folder / kinds["Pooling"] / "config.json"
        settings = read_json(file, {})
        on = [key for key, value in settings.items() if key.startswith("pooling_mode") and value]
        mode = str(settings.get("pooling_mode", ",".join(on)))
        pooling = POOLINGS.get(mode.removeprefix("pooling_mode_"), "")
        if not pooling:
            raise InputError(f"{file}: pooling {mode!r} is not supported, only cls or mean")
    sentence = read_json(folder / "sentence_bert_config.json", {})
    prompts = read_json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    limit = min(sentence.get("max_seq_length") or longest, longest)
    return {
        "task": "embed",
        "pooling": pooling,
        "normalize": "Normalize" in kinds,
        "prompts": Prompts(prompts.get("query", ""), prompts.get("passage", prompts.get("document", ""))),
        "max_tokens": MaxTokens(query=limit, passage=limit, pair=longest),
    }


def read_json(file: Path, default: Any) -> Any:
    """Return the value in a JSON file, or ``default`` if there is no such file. Raises InputError on other content."""
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
