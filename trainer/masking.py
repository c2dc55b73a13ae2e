"""Masked words, as BERT is trained on them (Devlin et al. 2019): 15% of the tokens, special ones left out."""

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

MASKED_SHARE = 0.15
UNMASKED = -100
"""What the labels have where nothing is to be predicted."""


class Masking:
    """Masks token ids at random: of those chosen, 80% become [MASK], 10% another word, 10% stay.

    Args:
        seed: of the choice; batch after batch is drawn from it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_SHARE, seed=seed)
        self._collator.create_rng()
        self._special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return masked ids and labels, UNMASKED where nothing was chosen; LongTensors [batch, tokens] both."""
        special = torch.isin(input_ids, self._special)
        ids, labels = self._collator.torch_mask_tokens(input_ids.clone(), special)
        return ids, labels
