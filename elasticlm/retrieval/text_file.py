"""``text:FILE``, with one paragraph or one query per line, and data made from any list of paragraphs.

Paragraphs are passages, their sentences are queries without labels, their two halves are labelled pairs.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Corpus, RetrievalData, sha1_share, shuffled
from elasticlm.retrieval.lines import numbered_lines

SHARES = 20  # one share of the paragraphs is test, one dev, the rest train
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 4, 60
# After . ! or ?, not after an initial such as " J.", before what a sentence may begin with.
SENTENCE_END = re.compile(r"""(?<=[.!?])(?<!\s[A-Z]\.)\s+(?=[A-Z0-9"'(\[])""")


class Paragraphs:
    """Paragraphs with ids, as a source of passages, queries and pairs."""

    def __init__(self, spec: str, ids: Sequence[str], paragraphs: Sequence[str]) -> None:
        first: dict[str, str] = {}  # a paragraph that comes again would be a wrong answer to its own query
        for pid, paragraph in zip(ids, paragraphs, strict=True):
            first.setdefault(paragraph, pid)
        self.spec = spec
        self.rows = [(pid, paragraph) for paragraph, pid in first.items()]

    def corpus(self) -> Corpus:
        return Corpus([pid for pid, _ in self.rows], [""] * len(self.rows), [paragraph for _, paragraph in self.rows])

    def sentences(self) -> tuple[list[str], list[str]]:
        """Ids and texts of the sentences of 4 to 60 words, each once; a line of one sentence may be shorter."""
        found: dict[str, str] = {}
        for pid, paragraph in self.rows:
            parts = sentences(paragraph)
            least = MIN_QUERY_WORDS if len(parts) > 1 else 1
            for number, sentence in enumerate(parts, 1):
                if least <= len(sentence.split()) <= MAX_QUERY_WORDS:
                    found.setdefault(sentence, f"{pid}.{number}")
        return list(found.values()), list(found)

    def pairs(self, split: str, judged: "Paragraphs") -> RetrievalData:
        """First halves of the ``judged`` paragraphs as queries over the second halves of all.

        A half has the id of its paragraph, so that an index of whole paragraphs fits the judgements too.
        """
        corpus = {pid: second for pid, (_, second) in self._halves()}
        queries = {f"q{pid}": first for pid, (first, _) in judged._halves()}
        if not queries:
            raise InputError(f"{self.spec}: no paragraph of split {split} is long enough to be cut into two halves")
        return RetrievalData(
            spec=self.spec,
            split=split,
            passage_ids=list(corpus),
            titles=[""] * len(corpus),
            passages=list(corpus.values()),
            query_ids=list(queries),
            queries=list(queries.values()),
            qrels={qid: {qid.removeprefix("q"): 1} for qid in queries},
        )

    def _halves(self) -> Iterator[tuple[str, tuple[str, str]]]:
        for pid, paragraph in self.rows:
            if pair := halves(paragraph):
                yield pid, pair


class TextFile:
    """A text file, cut into splits by the SHA-1 of each paragraph: 90% train, 5% dev, 5% test."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.spec = Path(path), f"text:{path}"
        if not self.path.is_file():
            raise InputError(f"{self.spec}: no such file {self.path}")

    def corpus(self) -> Corpus:
        return self._paragraphs().corpus()

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        return self._paragraphs(split).sentences()

    def retrieval(self, split: str) -> RetrievalData:
        return self._paragraphs().pairs(split, self._paragraphs(split))

    def texts(self, split: str | None, seed: int | None = None) -> Iterable[str]:
        return shuffled(self._paragraphs(split).corpus().texts, seed)

    def everything(self) -> list[str]:
        return list(self.corpus().texts)

    def has_labels(self, split: str) -> bool:
        return False

    def _paragraphs(self, split: str | None = None) -> Paragraphs:
        rows = [(str(number), line.strip()) for _, number, line in numbered_lines(self.path)]
        if not rows:
            raise InputError(f"{self.path} holds no text; expected one paragraph per line")
        if split not in (None, "train", "dev", "test"):
            raise InputError(f"{self.spec}: no split {split!r}; a text file has train, dev and test")
        chosen = [row for row in rows if split in (None, sha1_split(row[1]))]
        if not chosen:
            raise InputError(f"{self.spec}: none of its {len(rows)} paragraphs falls into split {split} (by SHA-1)")
        return Paragraphs(self.spec, [pid for pid, _ in chosen], [paragraph for _, paragraph in chosen])


def sha1_split(paragraph: str) -> str:
    return {0: "test", 1: "dev"}.get(sha1_share(paragraph, SHARES), "train")


def sentences(paragraph: str) -> list[str]:
    """Cut a paragraph at the ends of its sentences.

    >>> sentences("It was made by J. Smith. Nobody knew why. Then 1984 came.")
    ['It was made by J. Smith.', 'Nobody knew why.', 'Then 1984 came.']
    """
    return [sentence.strip() for sentence in SENTENCE_END.split(paragraph) if sentence.strip()]


def halves(paragraph: str) -> tuple[str, str] | None:
    """Cut a paragraph at the sentence end nearest to its middle, else at the middle word; None where it is too short.

    >>> halves("Rain fell on the town. The river rose all night.")
    ('Rain fell on the town.', 'The river rose all night.')
    """
    words = paragraph.split()
    cuts, length = [], 0
    for sentence in sentences(paragraph)[:-1]:
        length += len(sentence.split())
        cuts.append(length)
    cuts = [cut for cut in cuts if MIN_QUERY_WORDS <= cut <= len(words) - MIN_QUERY_WORDS] or [len(words) // 2]
    cut = min(cuts, key=lambda cut: abs(cut - len(words) / 2))
    if min(cut, len(words) - cut) < MIN_QUERY_WORDS:
        return None
    return " ".join(words[:cut]), " ".join(words[cut:])
