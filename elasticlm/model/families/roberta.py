"""RoBERTa: BERT's layers, positions counted from the padding word on, no token types (Liu et al. 2019).

XLM-RoBERTa (Conneau et al. 2020; multilingual-e5, bge-m3, bge-reranker) and CamemBERT have other vocabularies only.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from elasticlm.model.families.base import HeadLayers
from elasticlm.model.families.bert import SUPPORTED, WEIGHT_NAMES
from elasticlm.model.families.post_norm import BERT_DROPOUT, HIDDEN, PostNormFamily


class Roberta(PostNormFamily):
    """RoBERTa. Its table of token types has one row, which is added to every word."""

    name = "roberta"
    prefix = "Roberta"
    load_options = {"add_pooling_layer": False}
    supported = SUPPORTED
    dropout_fields = BERT_DROPOUT | {"summary": ("classifier_dropout", *HIDDEN)}
    weight_names = WEIGHT_NAMES
    uses_token_types = False
    positions_after_padding = True

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("classifier.dense", "classifier.out_proj")

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return theirs.lm_head


class XLMRoberta(Roberta):
    name = "xlm-roberta"
    prefix = "XLMRoberta"


class Camembert(Roberta):
    name = "camembert"
    prefix = "Camembert"
