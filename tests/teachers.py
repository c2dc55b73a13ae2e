"""Teachers as people serve them, made of the tiny BERT: with a classification head, Dense modules, other files."""

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

NAMES = {1: ["LABEL_0"], 3: ["contradiction", "entailment", "neutral"]}


def sequence_classifier(tiny_bert: Path, folder: Path, labels: int, **settings) -> Path:
    """Write a random BertForSequenceClassification with the tiny BERT's sizes and tokenizer."""
    config = BertConfig.from_pretrained(tiny_bert, num_labels=labels, **settings)
    config.id2label = dict(enumerate(NAMES.get(labels, [f"LABEL_{i}" for i in range(labels)])))
    config.label2id = {label: i for i, label in config.id2label.items()}
    torch.manual_seed(labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


def logits(folder: Path, firsts: list[str], seconds: list[str] | None) -> torch.Tensor:
    """Hugging Face's own logits, FloatTensor [texts, labels], of texts or pairs tokenised by Hugging Face."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(firsts, seconds, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def sentence_teacher(tiny_bert: Path, folder: Path, modules: list[tuple[str, str, dict | None]]) -> Path:
    """Copy the tiny BERT with these modules: path, type, config.json (None: no file)."""
    shutil.copytree(tiny_bert, folder)
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").write_text(json.dumps(
        [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
         for i, (path, kind, _) in enumerate(modules)]))  # fmt: skip
    for path, _, settings in modules:
        (folder / path).mkdir(exist_ok=True)
        if settings is not None:
            (folder / path / "config.json").write_text(json.dumps(settings))
    return folder
