"""Encoder families, each in its own file: see base.EncoderFamily."""

from elasticlm.errors import InputError
from elasticlm.model.families.base import EncoderFamily
from elasticlm.model.families.bert import Bert
from elasticlm.model.families.distilbert import DistilBert
from elasticlm.model.families.electra import Electra
from elasticlm.model.families.modernbert import ModernBert
from elasticlm.model.families.mpnet import MPNet
from elasticlm.model.families.nomic import NomicBert
from elasticlm.model.families.roberta import Camembert, Roberta, XLMRoberta

FAMILIES: dict[str, EncoderFamily] = {family.name: family for family in (
    Bert(), Camembert(), DistilBert(), Electra(), ModernBert(), MPNet(), NomicBert(), Roberta(), XLMRoberta(),
)}  # fmt: skip


def family_of(model_type: str) -> EncoderFamily:
    """Return the family with this name (Hugging Face's model_type); raises InputError for others."""
    if model_type not in FAMILIES:
        raise InputError(f"model_type is {model_type!r}; supported encoder families: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
