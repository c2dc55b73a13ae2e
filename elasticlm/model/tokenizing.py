"""Tokenise texts and pairs of texts at a cost that is linear in their length, and bounded.

A tokenizer that truncates a pair by itself keeps every combination of the parts that it cuts off: 4 KB of text take 200
ms at a limit of 128 tokens, and 256 KB more memory than there is. Here every text is tokenised once, alone, and pairs
are joined from token ids. The result is the tokenizer's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class PairTemplate:
    """How a tokenizer joins two texts: special tokens before, between and after, and the token types of all parts.

    Attributes:
        special: ids of the special tokens in the three places.
        types: token types of the five parts: before, first text, between, second text, after; one per special token.
    """

    special: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], int, list[int], int, list[int]]

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
        )

    def join(self, first: list[int], second: list[int], limit: int) -> tuple[list[int], list[int], bool]:
        """Return ids and token types of a pair, and whether it was cut to ``limit`` tokens."""
        room = limit - sum(map(len, self.special))
        firsts, seconds = longest_first(len(first), len(second), room)
        before, between, after = self.special
        ids = [*before, *first[:firsts], *between, *second[:seconds], *after]
        types = [*self.types[0], *[self.types[1]] * firsts, *self.types[2], *[self.types[3]] * seconds, *self.types[4]]
        return ids, types, firsts + seconds < len(first) + len(second)


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
    types: bool,
) -> Tokenized:
    """Tokenise pairs of texts, each cut to ``limit`` tokens; a text that occurs several times is tokenised once."""
    clipped = {text: text[: CHARACTERS_PER_TOKEN * limit] for text in (*firsts, *seconds)}
    alone = tokenizer(list(clipped.values()), add_special_tokens=False, return_attention_mask=False,
                      return_token_type_ids=False, verbose=False)["input_ids"]  # fmt: skip
    ids = dict(zip(clipped, alone, strict=True))
    pairs = [template.join(ids[first], ids[second], limit) for first, second in zip(firsts, seconds, strict=True)]
    lengths = np.array([len(row) for row, _, _ in pairs])
    shape = len(pairs), int(lengths.max())
    tensors = {"input_ids": np.full(shape, tokenizer.pad_token_id), "attention_mask": np.zeros(shape, dtype=np.int64)}
    if types:
        tensors["token_type_ids"] = np.full(shape, tokenizer.pad_token_type_id)
    for i, (row, row_types, _) in enumerate(pairs):
        tensors["input_ids"][i, : len(row)] = row
        tensors["attention_mask"][i, : len(row)] = 1
        if types:
            tensors["token_type_ids"][i, : len(row)] = row_types
    cut = [was_cut or len(clipped[first]) < len(first) or len(clipped[second]) < len(second)
           for (_, _, was_cut), first, second in zip(pairs, firsts, seconds, strict=True)]  # fmt: skip
    return Tokenized({name: torch.from_numpy(array) for name, array in tensors.items()}, cut)
