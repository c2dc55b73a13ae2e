"""ELECTRA: BERT's layers, embeddings that may be narrower and are then projected (Clark et al. 2020)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from elasticlm.model.families.base import HeadLayers
from elasticlm.model.families.bert import SUPPORTED, WEIGHT_NAMES
from elasticlm.model.families.post_norm import BERT_DROPOUT, HIDDEN, PostNormFamily


class Electra(PostNormFamily):
    """ELECTRA's discriminator, or its generator."""

    name = "electra"
    prefix = "Electra"
    complete = ("embeddings.", "embeddings_project.", "encoder.")
    supported = SUPPORTED
    dropout_fields = BERT_DROPOUT | {"summary": ("classifier_dropout", *HIDDEN)}
    weight_names = [("embeddings_project", "embeddings.projection"), *WEIGHT_NAMES]
    uses_token_types = True

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("classifier.dense", "classifier.out_proj", activation="gelu")

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return lambda hidden: theirs.generator_lm_head(theirs.generator_predictions(hidden))
