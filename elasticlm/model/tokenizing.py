"""Tokenise texts and pairs of texts at a cost that is linear in their length, and bounded.

A tokenizer that truncates a pair by itself keeps every combination of the parts that it cuts off: 4 KB of text take 200
ms at a limit of 128 tokens, and 256 KB more memory than there is. Here every text is tokenised once, alone, and pairs
are joined from token ids. The result is the tokenizer's own.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHARACTERS_PER_TOKEN = 32
"""Texts are cut to this many characters per token of the length limit before they are tokenised."""


class Tokenized(BatchEncoding):
    """Tokenised texts or pairs, as LongTensors [batch, tokens], padded to the longest.

    Attributes:
        cut: whether something of a text or pair was left out, [batch].
    """

    def __init__(self, tensors: dict[str, torch.Tensor], cut: list[bool]) -> None:
        super().__init__(tensors)
        self.cut = cut

    def on(self, device: torch.device) -> "Tokenized":
        """Move the tensors to a device."""
        self.to(device)
        return self


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, *, prompt: str = "", types: bool = False
) -> Tokenized:
    """Tokenise texts, each behind the prompt and cut to ``limit`` tokens.

    Args:
        types: whether to return ``token_type_ids`` too.
    """
    clipped = [text[: CHARACTERS_PER_TOKEN * limit] for text in texts]
    inputs = tokenizer([prompt + text for text in clipped], padding=True, truncation=True, max_length=limit,
                       return_token_type_ids=types, return_tensors="pt")  # fmt: skip
    cut = [bool(encoding.overflowing) or len(kept) < len(text)
           for encoding, kept, text in zip(inputs.encodings, clipped, texts, strict=True)]  # fmt: skip
    return Tokenized(dict(inputs), cut)


def lower_cased(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Return a tokenizer that lower-cases its texts first, and then does what this one does.

    It is of the generic class, whose files hold all steps; BertTokenizer would set up its own steps when it is loaded.
    """
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizers = [{"type": "Lowercase"}, *([steps["normalizer"]] if steps["normalizer"] else [])]
    steps["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(steps))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.model_max_length,
                                   model_input_names=tokenizer.model_input_names,
                                   padding_side=tokenizer.padding_side, **tokenizer.special_tokens_map)  # fmt: skip


def tokenize_alone(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], text_limit: int, pair_limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Return the token ids of texts without special tokens, and whether something of a text was left out.

    Args:
        text_limit: length limit of a text in tokens, the special tokens of a single text included.
        pair_limit: length limit of the pair that the text becomes a part of; what it alone would cut off is kept, since
            that depends on the other text.
    """
    limit = min(text_limit, pair_limit)
    clipped = [text[: CHARACTERS_PER_TOKEN * limit] for text in texts]
    ids = tokenizer(clipped, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
                    verbose=False)["input_ids"]  # fmt: skip
    room = limit - tokenizer.num_special_tokens_to_add(pair=False) if text_limit < pair_limit else None
    cut = [len(row[:room]) < len(row) or len(kept) < len(text)
           for row, kept, text in zip(ids, clipped, texts, strict=True)]  # fmt: skip
    return [row[:room] for row in ids], cut


@dataclass(frozen=True)
class PairTemplate:
    """How a tokenizer joins two texts: special tokens before, between and after, and the token types of all parts.

    Attributes:
        special: ids of the special tokens in the three places.
        types: token types of the five parts: before, first text, between, second text, after; one per special token.
        pad_id, pad_type: what pairs are padded with.
        single: special tokens of a single text.
    """

    special: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], int, list[int], int, list[int]]
    pad_id: int
    pad_type: int
    single: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "PairTemplate":
        """Read the template from a pair that the tokenizer joins."""
        example = tokenizer("a", "b", return_token_type_ids=True)
        texts = example.sequence_ids(0)
        ids, types = example["input_ids"], example["token_type_ids"]
        start, stop = texts.index(0), len(texts) - texts[::-1].index(0)
        second, end = texts.index(1), len(texts) - texts[::-1].index(1)
        places = slice(0, start), slice(stop, second), slice(end, None)
        before, between, after = (types[place] for place in places)
        return cls(
            special=(ids[places[0]], ids[places[1]], ids[places[2]]),
            types=(before, types[start], between, types[second], after),
            pad_id=tokenizer.pad_token_id,
            pad_type=tokenizer.pad_token_type_id,
            single=tokenizer.num_special_tokens_to_add(pair=False),
        )

    def longest(self, first: int, second: int) -> int:
        """Return the tokens of a pair whose texts have so many, each with the special tokens of a single text."""
        return first + second - 2 * self.single + sum(map(len, self.special))

    def join(self, first: Sequence[int], second: Sequence[int], limit: int) -> tuple[list[int], list[int], bool]:
        """Return ids and token types of a pair, and whether it was cut to ``limit`` tokens."""
        room = limit - sum(map(len, self.special))
        firsts, seconds = longest_first(len(first), len(second), room)
        before, between, after = self.special
        ids = [*before, *first[:firsts], *between, *second[:seconds], *after]
        types = [*self.types[0], *[self.types[1]] * firsts, *self.types[2], *[self.types[3]] * seconds, *self.types[4]]
        return ids, types, firsts + seconds < len(first) + len(second)

    def inputs(
        self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]], limit: int, *, types: bool
    ) -> tuple[dict[str, torch.Tensor], list[bool]]:
        """Return the inputs of pairs, LongTensors [pairs, tokens], and whether each was cut to ``limit`` tokens.

        Args:
            pairs: token ids of the two texts, without special tokens.
            types: whether to return ``token_type_ids`` too.
        """
        rows = [self.join(first, second, limit) for first, second in pairs]
        shape = len(rows), max(len(ids) for ids, _, _ in rows)
        arrays = {"input_ids": np.full(shape, self.pad_id), "attention_mask": np.zeros(shape, dtype=np.int64)}
        if types:
            arrays["token_type_ids"] = np.full(shape, self.pad_type)
        for i, (ids, row_types, _) in enumerate(rows):
            arrays["input_ids"][i, : len(ids)] = ids
            arrays["attention_mask"][i, : len(ids)] = 1
            if types:
                arrays["token_type_ids"][i, : len(ids)] = row_types
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, [cut for _, _, cut in rows]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text are kept, as the tokenizers' strategy ``longest_first`` does.

    >>> longest_first(3, 4, 10), longest_first(3, 90, 10), longest_first(90, 3, 10), longest_first(90, 90, 11)
    ((3, 4), (3, 7), (7, 3), (5, 6))
    """
    if first + second <= room:
        return first, second
    short = min(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (long, short) if first > second else (short, long)


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    template: PairTemplate,
    firsts: Sequence[str],
    seconds: Sequence[str],
    limit: int,
    *,
    text_limits: tuple[int, int] | None = None,
    types: bool,
) -> Tokenized:
    """Tokenise pairs of texts, each cut to ``limit`` tokens; a text that occurs several times is tokenised once.

    Args:
        text_limits: length limits of the first and the second text before they are joined, see tokenize_alone();
            None: that of the pair.
    """
    sides = []
    for texts, most in zip((firsts, seconds), text_limits or (limit, limit), strict=True):
        distinct = list(dict.fromkeys(texts))
        tokenized = zip(*tokenize_alone(tokenizer, distinct, most, limit), strict=True)
        found = dict(zip(distinct, tokenized, strict=True))
        sides.append([found[text] for text in texts])
    pairs = list(zip(*sides, strict=True))
    tensors, cut = template.inputs(((first, second) for (first, _), (second, _) in pairs), limit, types=types)
    return Tokenized(tensors, [any(each) for each in zip(cut, *([was_cut for _, was_cut in side] for side in sides),
                                                         strict=True)])  # fmt: skip
