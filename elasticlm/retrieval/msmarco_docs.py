"""``msmarco-docs:DIR``: the official files of MS MARCO's document ranking.

- ``msmarco-docs.tsv``: the documents; columns docid, url, title and body, without a header;
- ``msmarco-docSPLIT-queries.tsv``: columns qid and query; SPLIT is train or dev;
- ``msmarco-docSPLIT-qrels.tsv``: TREC's four columns.

Files may be compressed (.gz). A document is read by a model as its title and its body; the URL is left out, since most
of its tokens are no words. The documents stay in a file: 3.2 million of them have about 22 GB of text, and a reranker
needs those that a first stage ranks high. Such a run, in TREC's form, is given with ``--run``: HDCT's, or the official
``msmarco-docSPLIT-top100``.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.retrieval.beir import read_judgements
from elasticlm.retrieval.corpus import Corpus, Gaps, Qrels, RetrievalData, shuffled
from elasticlm.retrieval.lines import plain_or_gz, tab_separated
from elasticlm.retrieval.parsed_files import check_unique, parsed_columns

DOCUMENTS_FILE = "msmarco-docs.tsv"
DOCUMENT_COLUMNS = ("docid", "url", "title", "body")
KEPT_COLUMNS = ("docid", "title", "body")
SPLITS = ("train", "dev")


class MsMarcoDocs:
    """The documents, and the queries that a split judges."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.spec = Path(folder), f"msmarco-docs:{folder}"
        if not self.folder.is_dir():
            raise InputError(f"{self.spec}: no such folder {self.folder}")

    def corpus(self) -> Corpus:
        path = self.folder / DOCUMENTS_FILE
        columns = parsed_columns(path, document_rows, KEPT_COLUMNS)
        check_unique(columns["docid"], path, name="docid")
        return Corpus(columns["docid"], columns["title"], columns["body"])

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        """Ids and texts of the queries that a split judges, in the order of its judgements."""
        texts, gaps = self._query_texts(split), Gaps(self.spec)
        qrels = gaps.without_queries(self._qrels(split), texts)
        gaps.say()
        return list(qrels), [texts[qid] for qid in qrels]

    def retrieval(self, split: str) -> RetrievalData:
        texts, qrels = self._query_texts(split), self._qrels(split)
        return RetrievalData.of(self.spec, split, self.corpus(), texts, qrels)

    def texts(self, split: str | None, seed: int | None = None) -> Iterable[str]:
        """Documents, which belong to no split."""
        return shuffled(self.corpus().findable.passages, seed)

    def everything(self) -> Iterable[str]:
        splits = [split for split in SPLITS if self._file(split, "queries").is_file()]
        queries = chain.from_iterable(self._query_texts(split).values() for split in splits)
        return chain(self.corpus().findable.passages, queries)

    def has_labels(self, split: str) -> bool:
        return self._file(split, "qrels").is_file()

    def _query_texts(self, split: str) -> dict[str, str]:
        """Texts of all queries of a split that have one."""
        rows = tab_separated(self._existing(split, "queries"), ("qid", "query"))
        return {qid: text for _, (qid, text) in rows if text.strip()}

    def _qrels(self, split: str) -> Qrels:
        return read_judgements(self._existing(split, "qrels"))

    def _existing(self, split: str, kind: str) -> Path:
        path = self._file(split, kind)
        if not path.is_file():
            raise InputError(f"{self.spec}: no split {split!r}, since there is no file {path} (splits: "
                             f"{', '.join(SPLITS)})")  # fmt: skip
        return path

    def _file(self, split: str, kind: str) -> Path:
        return plain_or_gz(self.folder / f"msmarco-doc{split}-{kind}.tsv")


def document_rows(path: str, shown_as: str, stamp: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Checked rows of msmarco-docs.tsv, see elasticlm.retrieval.parsed_files."""
    empty = True
    for place, (docid, _, title, body) in tab_separated(Path(path), DOCUMENT_COLUMNS, shown_as=shown_as):
        if not docid.strip():
            raise InputError(f"{place}: the docid is empty")
        empty = False
        yield {"docid": docid.strip(), "title": title, "body": body}
    if empty:
        raise InputError(f"{shown_as} holds no document")
