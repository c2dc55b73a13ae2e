"""A tiny random teacher of every encoder family: Hugging Face's own class, with a tokenizer of the family's kind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from random_texts import WORDS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from elasticlm.model.families import FAMILIES

LONGEST = 64
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "hidden_act": "gelu",
}  # fmt: skip
BERTS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
ROBERTAS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def word_pieces(names: tuple[str, ...] = BERTS, *, types: bool = False) -> PreTrainedTokenizerFast:
    """BERT's kind, with the special tokens of others perhaps."""
    backend = Tokenizer(models.WordPiece(unk_token=names[3]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(backend, trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(names)), names, types)


def byte_pairs(names: tuple[str, ...] = ROBERTAS) -> PreTrainedTokenizerFast:
    """RoBERTa's kind: pairs of bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(backend, trainers.BpeTrainer(vocab_size=400, special_tokens=list(names), initial_alphabet=alphabet,
                                                 show_progress=False), names)  # fmt: skip


def sentence_pieces() -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's kind: a unigram model over text with its spaces."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _trained(backend, trainers.UnigramTrainer(vocab_size=150, special_tokens=list(ROBERTAS), unk_token="<unk>",
                                                     show_progress=False), ROBERTAS)  # fmt: skip


def _trained(backend: Tokenizer, trainer: Any, names: tuple[str, ...], types: bool = False) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(WORDS.split() * 2, trainer)
    start, pad, end, unknown, mask = names
    between = f"{end} {end}" if names == ROBERTAS else end
    second = int(types)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=f"{start} $A {between} $B:{second} {end}:{second}",
        special_tokens=[(name, backend.token_to_id(name)) for name in (start, end)],
    )  # fmt: skip
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LONGEST, model_input_names=inputs,
        cls_token=start, pad_token=pad, sep_token=end, unk_token=unknown, mask_token=mask,
    )  # fmt: skip


@dataclass(frozen=True)
class TinyFamily:
    """How to make a tiny teacher, and where Hugging Face's model has the weights that its units go through.

    Attributes:
        heads, neurons: names, within a layer, of the linear layers that take in the heads and the neurons.
        layers: name of the list of layers.
        settings: fields of the configuration besides the sizes.
    """

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    heads: str = "attention.output.dense"
    neurons: str = "output.dense"
    layers: str = "encoder.layer"
    settings: dict[str, Any] = field(default_factory=dict)


AFTER_PADDING = {"max_position_embeddings": LONGEST + 2}
ROBERTA = TinyFamily(byte_pairs, settings=AFTER_PADDING | {"type_vocab_size": 1})
TINY = {
    "bert": TinyFamily(lambda: word_pieces(types=True)),
    "camembert": TinyFamily(sentence_pieces, settings=ROBERTA.settings),
    "distilbert": TinyFamily(word_pieces, "attention.out_lin", "ffn.lin2", "transformer.layer"),
    "electra": TinyFamily(lambda: word_pieces(types=True), settings={"embedding_size": 16}),
    "modernbert": TinyFamily(lambda: byte_pairs(BERTS), "attn.Wo", "mlp.Wo", "layers", {"local_attention": 8}),
    "mpnet": TinyFamily(lambda: word_pieces(ROBERTAS), "attention.attn.o", settings=AFTER_PADDING),
    "nomic_bert": TinyFamily(
        lambda: word_pieces(types=True), "self_attn.o_proj", "mlp.down_proj", "layers", {"hidden_act": "silu"}
    ),
    "roberta": ROBERTA,
    "xlm-roberta": TinyFamily(sentence_pieces, settings=ROBERTA.settings),
}


def tiny_teacher(name: str, folder: Path, kind: str = "Model", *, noise: float = 0.2, **settings: Any) -> Any:
    """Write a random teacher of a family and return Hugging Face's model of it.

    Args:
        kind: the end of the class's name: "Model", "ForSequenceClassification" or "ForMaskedLM".
        noise: standard deviation of what is added to all weights, so that no bias is 0 and no norm 1.
        settings: further fields of the configuration.
    """
    family, tiny = FAMILIES[name], TINY[name]
    tokenizer = tiny.tokenizer()
    special = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("pad", "cls", "sep")}
    fields = {"max_position_embeddings": LONGEST} | SIZES | tiny.settings | {"vocab_size": len(tokenizer)} | special
    config = family.class_named("Config")(**{family.field_names.get(k, k): v for k, v in fields.items()} | settings)
    torch.manual_seed(0)
    options = family.load_options if kind == "Model" else {}
    model = family.class_named(kind)(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
