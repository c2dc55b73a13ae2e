"""What a run is trained on: texts of one or several data specs, without those that an excluded set shares."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import shuffled
from elasticlm.retrieval.data_specs import load_corpus, load_everything, load_queries, load_texts

RUN = 10  # words in a row that two texts must not share
WORD = re.compile(r"\w+")


class Exclusion:
    """Drops texts that share a run of 10 words with a passage or a query of the excluded sets, of whatever split.

    Case and punctuation do not count. A text of fewer words is dropped if it occurs there as a whole.

    Attributes:
        dropped: how many texts it has dropped.
    """

    def __init__(self, specs: Sequence[str]) -> None:
        self.specs, self.dropped = list(specs), 0
        self._runs = {run for spec in specs for text in load_everything(spec) for run in _runs(text)}

    def keep(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts that share nothing, as they come."""
        return (text for text in texts if self.keeps(text))

    def keeps(self, text: str) -> bool:
        """Whether a text shares nothing; counts it as dropped otherwise."""
        kept = not self._runs or self._runs.isdisjoint(_runs(text))
        self.dropped += not kept
        return kept

    def report(self) -> dict[str, object]:
        """For training.json: what was excluded, and how many texts that cost."""
        if self.specs:
            say(f"excluded {self.dropped:,} texts that share {RUN} words in a row with {', '.join(self.specs)}")
        return {"exclude": {"specs": self.specs, "texts_dropped": self.dropped}} if self.specs else {}


def queries(specs: Sequence[str], split: str, count: int, seed: int, exclusion: Exclusion) -> Iterator[str]:
    """At most ``count`` queries of the specs' split, each once, drawn at random and from every spec in turn.

    A larger count begins with the same queries.
    """
    drawn = (shuffled(load_queries(spec, split)[1], seed) for spec in specs)
    return islice(_once(exclusion.keep(_in_turn(drawn))), count)


def texts(specs: Sequence[str], split: str, count: int, seed: int, exclusion: Exclusion) -> Iterator[str]:
    """At most ``count`` running texts, drawn in the same way; no more are read than that."""
    drawn = (load_texts(spec, split, seed) for spec in specs)
    return islice(exclusion.keep(_in_turn(drawn)), count)


def passages(specs: Sequence[str], count: int, seed: int, exclusion: Exclusion) -> Iterator[str]:
    """At most ``count`` passages of the specs that have a corpus, drawn in the same way."""
    corpora = [spec for spec in specs if not spec.startswith("glue:")]
    if not corpora:
        raise InputError(f"{', '.join(specs)}: no passages there to compare queries with; give --index or more --data")
    drawn = (shuffled(load_corpus(spec).passages, seed) for spec in corpora)
    return islice(exclusion.keep(_in_turn(drawn)), count)


def _in_turn(sources: Iterable[Iterable[str]]) -> Iterator[str]:
    """One text of every source, then the next of every source, until all are used up."""
    waiting = deque(map(iter, sources))
    while waiting:
        source = waiting.popleft()
        try:
            yield next(source)
        except StopIteration:
            continue
        waiting.append(source)


def _once(texts: Iterable[str]) -> Iterator[str]:
    """The texts without those that came before; remembers a hash of each."""
    seen: set[int] = set()
    for text in texts:
        if (key := hash(text)) not in seen:
            seen.add(key)
            yield text


def _runs(text: str) -> set[int]:
    """Hashes of the text's runs of 10 words, or of all its words where they are fewer."""
    words = WORD.findall(text.lower())
    return {hash(tuple(words[i : i + RUN])) for i in range(max(1, len(words) - RUN + 1))}
