"""Structures in the paper's notation, scaled from BERT to another base."""

import json
from dataclasses import dataclass

from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.download import resolve_model
from elasticlm.model.families import family_of
from elasticlm.model.folder import CONFIG_FILE
from elasticlm.model.sentence_settings import SentenceFiles

BERT_LAYERS, BERT_WIDTH = 12, 768


@dataclass(frozen=True)
class Sizes:
    """Of an encoder, by its configuration."""

    config: ElasticConfig

    @classmethod
    def read(cls, name: str) -> "Sizes":
        """Read the configuration of a folder or hub name."""
        folder = SentenceFiles.of(resolve_model(name)).transformer
        family = family_of(json.loads((folder / CONFIG_FILE).read_text("utf-8"))["model_type"])
        return cls(ElasticConfig(**family.config_fields(family.class_named("Config").from_pretrained(folder))))

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def heads(self) -> int:
        return self.config.num_attention_heads

    @property
    def gflops(self) -> float:
        """Of the whole encoder, as the paper counts them: 10.9 for BERT-base."""
        return family_of(self.config.family).paper_gflops(self.config, self.config.whole)


@dataclass(frozen=True)
class Shape:
    """A structure: a share of the base's parameters, or layers and width, scaled from BERT's to the base.

    Attributes:
        level: percentage, of pruned structures; 100: the whole base, or the whole large teacher.
        layers, width: of the others, of the base's kind.
    """

    level: float | None = None
    layers: int | None = None
    width: int | None = None
    large: bool = False

    @classmethod
    def of(cls, text: str, base: Sizes) -> "Shape":
        """Read the paper's notation: "50%", "4L;384H", "6L"; "base" and "large" are whole encoders."""
        if text.endswith("%"):
            number = float(text[:-1])
            return cls(level=int(number) if number.is_integer() else number)
        if not text[0].isdigit():
            return cls(level=100, large=text == "large")
        layers, _, width = text.partition("L")
        hidden = int(width.strip(";H") or BERT_WIDTH)
        scaled = base.width * hidden // BERT_WIDTH // base.heads * base.heads
        return cls(layers=max(1, round(base.layers * int(layers) / BERT_LAYERS)), width=max(base.heads, scaled))

    def __str__(self) -> str:
        if self.level == 100:
            return "large" if self.large else "base"
        return f"{self.level:g}%" if self.level is not None else f"{self.layers}L;{self.width}H"

    def share(self, base: Sizes) -> float:
        """Its multiply-adds as a share of the base's."""
        if self.level is not None:
            return self.level / 100
        layers, width = self.layers or base.layers, self.width or base.width
        return layers / base.layers * (width / base.width) ** 2
