"""A tiny retrieval set in the forms of BEIR, the hub, DPR and MS MARCO, made of the tiny BERT's words."""

import csv
import gzip
import json
from pathlib import Path

PASSAGES = [
    ("p1", "glacier", "the glacier melts slow in the warm sun"),
    ("p2", "glacier", "a cave forms in the ice of a glacier"),
    ("p3", "", "rain and snow fall on the mountain"),
    ("p4", "wind", "the wind is strong in the north sea"),
    ("p5", "moon", "the moon pulls the water and the tide is high"),
    ("p6", "wolf", "the wolf and the bear live in the forest"),
    ("p7", "gold", "gold and iron in the stone of the mountain"),
    ("p8", "", "black sand in the river of the south"),
    ("p9", "sound", "sound is a wave and light is a wave"),
    ("p10", "seed", "the seed in the soil is the root of a tree"),
]
QUERIES = {
    "q1": "how is a glacier cave formed",
    "q2": "why is the tide high",
    "q3": "what lives in the forest",
    "q4": "where is gold",
    "q5": "is light a wave",
    "q6": "what is in the soil",
    "q7": "where is snow",
}
QRELS = {
    "train": [("q6", "p10", 1), ("q7", "p3", 1)],
    "test": [("q1", "p2", 2), ("q1", "p1", 1), ("q2", "p5", 1), ("q3", "p6", 1), ("q4", "p7", 1), ("q5", "p9", 1)],
}
CANDIDATES = [("q1", "p1", 0), ("q1", "p2", 1), ("q1", "p4", 0), ("q2", "p5", 1), ("q2", "p4", 0), ("q3", "p6", 1)]

CARD = """---
configs:
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
- config_name: default
  data_files: [{split: train, path: train.jsonl}, {split: validation, path: test.jsonl}]
---
"""


def write_hub_beir(folder: Path) -> Path:
    """Write the set as the hub keeps BEIR: passages, queries and judgements as configurations."""
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    write_jsonl(folder / "corpus.jsonl", (dict(zip(("_id", "title", "text"), row, strict=True)) for row in PASSAGES))
    write_jsonl(folder / "queries.jsonl", ({"_id": qid, "text": text} for qid, text in QUERIES.items()))
    for split, rows in QRELS.items():
        named = (dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in rows)
        write_jsonl(folder / f"{split}.jsonl", named)
    return folder


def write_hub_tevatron(folder: Path, queries: list[tuple[str, str, list[str]]]) -> Path:
    """Write queries, each with a positive and negatives by id, a row a query as Tevatron does; splits train and dev."""
    passages = {pid: {"docid": pid, "title": title, "text": text} for pid, title, text in PASSAGES}
    rows = [
        {"query_id": str(i), "query": query, "positive_passages": [passages[positive]],
         "negative_passages": [passages[pid] for pid in negatives]}
        for i, (query, positive, negatives) in enumerate(queries)
    ]  # fmt: skip
    folder.mkdir()
    for split in ("train", "dev"):
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def write_hub_glue(folder: Path) -> Path:
    """Write labelled sentences with the columns of the hub's GLUE; splits train and validation."""
    folder.mkdir()
    rows = [{"sentence": text, "label": label, "idx": 0} for _, _, text in PASSAGES for label in (0, 1)]
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def write_hub_mnli(folder: Path) -> Path:
    """Write pairs with the columns of the hub's MNLI; splits train, validation_matched and validation_mismatched."""
    folder.mkdir()
    splits = {"train": 0, "validation_matched": 1, "validation_mismatched": 2}
    files = ", ".join(f"{{split: {split}, path: {split}.jsonl}}" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: [{files}]\n---\n")
    for split, shift in splits.items():
        texts = [text for _, _, text in PASSAGES]
        pairs = zip(texts, texts[shift:] + texts[:shift], strict=True)
        rows = ({"premise": a, "hypothesis": b, "label": i % 3, "idx": i} for i, (a, b) in enumerate(pairs))
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def write_dpr(folder: Path) -> Path:
    """Write the set in DPR's files: all passages, a train.json of two questions, three test questions with answers."""
    folder.mkdir()
    rows = [("id", "text", "title"), *((pid, text, title) for pid, title, text in PASSAGES)]
    with open(folder / "psgs_w100.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    passages = {pid: {"passage_id": pid, "title": title, "text": text} for pid, title, text in PASSAGES}
    train = [
        {"question": "what is in the soil", "answers": ["seed"], "positive_ctxs": [passages["p10"]],
         "negative_ctxs": [passages["p9"]], "hard_negative_ctxs": [passages["p8"], passages["p7"]]},
        {"question": "where is snow", "answers": ["the mountain"], "positive_ctxs": [passages["p3"]],
         "hard_negative_ctxs": [passages["p1"]]},
    ]  # fmt: skip
    (folder / "biencoder-nq-train.json").write_text(json.dumps(train, indent=4))
    (folder / "nq-test.qas.csv").write_text(
        "what pulls the water\t['the Moon', 'moon']\n"
        'who lives in the forest\t"[""wolf""]"\n'
        "where is silver\t['nowhere at all']\n"
    )
    return folder


def write_msmarco_docs(folder: Path) -> Path:
    """Write the set in the official files of MS MARCO's document ranking; runs hold all documents of every query.

    A training query is the beginning or the end of its document, and ``dev`` is the test split.
    """
    folder.mkdir()
    with gzip.open(folder / "msmarco-docs.tsv.gz", "wt") as file:
        file.writelines(f"{pid}\thttps://example.org/{pid}\t{title}\t{text}\n" for pid, title, text in PASSAGES)
    parts = [(pid, part) for pid, _, text in PASSAGES for part in (text.split()[:4], text.split()[-4:])]
    train = {f"t{i}": " ".join(words) for i, (_, words) in enumerate(parts)}
    for split, queries, rows in (
        ("train", train, [(f"t{i}", pid, 1) for i, (pid, _) in enumerate(parts)]),
        ("dev", QUERIES, QRELS["test"]),
    ):
        start = f"msmarco-doc{split}"
        (folder / f"{start}-queries.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in queries.items()))
        (folder / f"{start}-qrels.tsv").write_text("".join(f"{qid} 0 {pid} {grade}\n" for qid, pid, grade in rows))
        with gzip.open(folder / f"{start}-top100.gz", "wt") as file:
            file.writelines(f"{qid} Q0 {pid} {rank} {-rank} IndriQueryLikelihood\n"
                            for qid in dict.fromkeys(qid for qid, _, _ in rows)
                            for rank, (pid, _, _) in enumerate(PASSAGES, 1))  # fmt: skip
    return folder


def write_jsonl(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tsv(path: Path, rows, score="score") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [("query-id", "corpus-id", score), *rows]
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))


def write_beir(folder: Path, candidates: bool = False) -> Path:
    """Write 10 passages, 7 queries, splits train (2) and test (5 queries, one with grades)."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", ({"_id": i, "title": title, "text": text} for i, title, text in PASSAGES))
    write_jsonl(folder / "queries.jsonl", ({"_id": i, "text": text} for i, text in QUERIES.items()))
    for split, rows in QRELS.items():
        write_tsv(folder / "qrels" / f"{split}.tsv", rows)
    if candidates:
        write_tsv(folder / "candidates" / "test.tsv", CANDIDATES, score="label")
    return folder
