"""The modules of an elastic model: the encoder of the nested levels, the head, and perhaps a teacher on top."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from elasticlm.backend import Backend
from elasticlm.backend.torch_backend import TorchBackend
from elasticlm.model import artifact
from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.dropout import NO_DROPOUT, Dropout
from elasticlm.model.encoder import ElasticEncoder
from elasticlm.model.heads import Dense, make_head, pool, score
from elasticlm.model.structure import WHOLE, ElasticStructure, Level, Structure


class ElasticModules(nn.Module):
    """Token ids in, vectors, scores or logits out, at any level.

    The parameters are those of the levels that share one set of weights, which are trained. A teacher on top (``top``)
    has its own, except for modules around the layers that are equal in both.

    Attributes:
        structures: what each level keeps.
        encoder: of the largest nested level.
        dense, head: what follows the encoder; one of them at most.
        backend: what runs a level without gradients.
    """

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        self.config = config
        self.structures: ElasticStructure = artifact.validate(config)
        nested = self.structures.nested
        self.encoder = ElasticEncoder(config, nested[nested.largest])
        self.dense = nn.Sequential(*map(Dense, config.dense))
        self.head = make_head(config)
        self._top: tuple[Self, ...] = ()  # in a tuple, since it is no part of what is trained
        self.backend: Backend = TorchBackend(self.encoders)
        self._dropout = NO_DROPOUT
        self.eval()

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.structures.levels

    @property
    def trained_levels(self) -> tuple[Level, ...]:
        """The levels that share one set of weights: all but a teacher on top."""
        return self.structures.nested.levels

    @property
    def device(self) -> torch.device:
        return self.encoder.words.weight.device

    @property
    def encodes_passages(self) -> bool:
        """Whether this model's largest level is what encodes the passages that its queries go with."""
        return self.config.passages.encoder == "largest" or (self.top is not None and self.config.task == "embed")

    @property
    def top(self) -> Self | None:
        """The teacher that is level 100, a model with that level alone; None if all levels are nested."""
        return self._top[0] if self._top else None

    def set_top(self, teacher: Self) -> None:
        """Let level 100 be this teacher. Modules around the layers that are equal in both are held once.

        Levels must be those of a model with a teacher on top, see ElasticStructure.
        """
        for ours, theirs, name in self._around_layers(teacher):
            mine, other = getattr(ours, name), getattr(theirs, name)
            if mine is not None and not artifact.differing(other.state_dict(), mine.state_dict()):
                setattr(theirs, name, mine)
        self._top = (teacher,)
        self.backend = TorchBackend(self.encoders)

    def separate_top(self, *, embeddings: bool) -> None:
        """Give the teacher on top copies of the modules that it shares with the levels below, which are to be trained.

        Args:
            embeddings: whether the embeddings are trained too.
        """
        for ours, theirs, name in self._around_layers(self.top) if self.top is not None else ():
            shared = getattr(ours, name) is getattr(theirs, name) is not None
            if shared and (embeddings or name != "embeddings"):
                setattr(theirs, name, copy.deepcopy(getattr(ours, name)))

    def _around_layers(self, teacher: Self) -> tuple[tuple[nn.Module, nn.Module, str], ...]:
        """The modules that a teacher may share with this model: their owners here and there, their name."""
        return (self.encoder, teacher.encoder, "embeddings"), (self, teacher, "dense"), (self, teacher, "head")

    @property
    def encoders(self) -> dict[Level, tuple[ElasticEncoder, Structure]]:
        """The encoder of each level, and what runs of it."""
        own = {level: (self.encoder, structure) for level, structure in self.structures.nested.items()}
        return own if self.top is None else {WHOLE: (self.top.encoder, self.structures[WHOLE])} | own

    def at(self, level: Level) -> Self:
        """The model whose weights run a level: the teacher on top, or this one. Raises InputError if there is none."""
        self.structures[level]
        return self.top if self.top is not None and level == WHOLE else self

    def weights_mib(self) -> tuple[float, float]:
        """Return the size of the word embeddings in fp32, and of all weights, in MiB; what is shared counts once."""
        models = [self] if self.top is None else [self, self.top]
        sizes = {weight.data_ptr(): weight.numel() for each in models for weight in each.state_dict().values()}
        words = {each.encoder.words.weight.data_ptr(): each.encoder.words.weight.numel() for each in models}
        return sum(words.values()) * 4 / 2**20, sum(sizes.values()) * 4 / 2**20

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool hidden states [batch, tokens, dim] to vectors [batch, vector_size]."""
        return pool(self.config, self.dense, hidden, attention_mask)

    def finish(self, hidden: Tensor, attention_mask: Tensor, *, dropout: Dropout = NO_DROPOUT) -> Tensor:
        """Turn hidden states [batch, tokens, dim] into what the task answers: vectors, scores or logits.

        embed: [batch, vector_size]; score: [batch]; classify: [batch, labels].
        """
        if self.head is None:
            return self.pool(hidden, attention_mask)
        return score(self.config, self.head, hidden, attention_mask, dropout)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, *, level: Level
    ) -> Tensor:
        """Run one level with gradients: vectors, scores or logits as in finish(). For training."""
        hidden = self.hidden(input_ids, attention_mask, token_type_ids, level=level)
        return self.at(level).finish(hidden, attention_mask, dropout=self.dropout_at(level))

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, *, level: Level
    ) -> Tensor:
        """Hidden states [batch, tokens, dim] of a level, with gradients."""
        encoder, structure = self.encoders[level]
        dropout = self.dropout_at(level)
        return encoder(input_ids, attention_mask, token_type_ids, structure=structure, dropout=dropout)

    @contextmanager
    def dropping(self, dropout: Dropout) -> Iterator[None]:
        """Drop values in forward() and hidden() at these rates, within the block. For training.

        It does not reach a teacher on top, nor what runs a level through the backend.
        """
        self._dropout = dropout
        try:
            yield
        finally:
            self._dropout = NO_DROPOUT

    def dropout_at(self, level: Level) -> Dropout:
        """The rates at which forward() drops values at a level: none outside dropping()."""
        return self._dropout if self.at(level) is self else NO_DROPOUT

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.top is not None:
            self.top._apply(fn, recurse)
        return self
