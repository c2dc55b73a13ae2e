"""Search a Qdrant collection, which the teacher filled, with vectors of an elastic model; export it for training.

python docs/examples/qdrant_search.py search --collection articles --model out/search --level 30 "cold rivers"
python docs/examples/qdrant_search.py export --collection articles --output collection
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import faiss
import numpy as np
from qdrant_client import QdrantClient, models

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model

AT_ONCE = 1000  # points per request


# --8<-- [start:fill]
def fill(client: QdrantClient, collection: str, teacher: str, passages: dict[str, str]) -> None:
    """Create a collection as it exists in production: every passage embedded by the teacher."""
    vectors = load_model(teacher).embed(list(passages.values()), kind="passage").numpy()
    size = vectors.shape[1]
    client.create_collection(collection, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE))
    payload = [{"doc_id": pid, "text": text} for pid, text in passages.items()]
    client.upload_collection(collection, vectors=vectors, payload=payload, ids=range(len(passages)), wait=True)
    # --8<-- [end:fill]


# --8<-- [start:search]
def search(
    client: QdrantClient, collection: str, model: ElasticModel, query: str, level: int | None = None, k: int = 10
) -> list[tuple[str, float]]:
    """Return the ids and scores of the best passages, with the query vector of a level (None: the largest)."""
    vector = model.embed([query], level=level)[0].tolist()
    return hits(client, collection, vector, k)


def hits(client: QdrantClient, collection: str, vector: list[float], k: int = 10) -> list[tuple[str, float]]:
    """Return the ids and scores of the passages nearest to a vector."""
    points = client.query_points(collection, query=vector, limit=k, with_payload=["doc_id"]).points
    return [(point.payload["doc_id"], point.score) for point in points]
    # --8<-- [end:search]


# --8<-- [start:server]
def served_vector(url: str, query: str) -> tuple[list[float], str]:
    """Ask the server for the vector of a query; return it with the level that answered."""
    headers = {"Content-Type": "application/json", "Accept": "application/octet-stream"}
    with urlopen(Request(url, json.dumps({"text": query}).encode(), headers)) as answer:
        return np.frombuffer(answer.read(), "<f4").tolist(), answer.headers["X-Elastic-Level"]
    # --8<-- [end:server]


# --8<-- [start:export]
def points_of(client: QdrantClient, collection: str) -> Iterator[list[models.Record]]:
    """Yield all points of a collection in blocks, in the order of their ids."""
    start = None
    while True:
        block, start = client.scroll(collection, limit=AT_ONCE, offset=start, with_vectors=True)
        yield block
        if start is None:
            return


def export(client: QdrantClient, collection: str, folder: Path) -> None:
    """Write passages.faiss, ids.txt and corpus.jsonl of a collection, row by row in the same order."""
    folder.mkdir(parents=True)
    index = None
    with open(folder / "ids.txt", "w") as ids, open(folder / "corpus.jsonl", "w") as corpus:
        for block in points_of(client, collection):
            vectors = np.array([point.vector for point in block], dtype=np.float32)
            index = index or faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            for point in block:
                ids.write(f"{point.payload['doc_id']}\n")
                corpus.write(json.dumps({"_id": point.payload["doc_id"], "text": point.payload["text"]}) + "\n")
    faiss.write_index(index, str(folder / "passages.faiss"))
    # --8<-- [end:export]


def main() -> None:
    """Parse the options and run one of the commands."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = options.add_subparsers(dest="command", required=True)
    searching, exporting = commands.add_parser("search"), commands.add_parser("export")
    for command in (searching, exporting):
        command.add_argument("--qdrant", default="http://127.0.0.1:6333", help="URL of Qdrant, or a folder (embedded)")
        command.add_argument("--collection", required=True)
    searching.add_argument("query")
    source = searching.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="artifact folder")
    source.add_argument("--server", help="http://HOST:8080/predictions/NAME, instead of --model")
    searching.add_argument("--level", type=int, help="with --model; default: the largest")
    exporting.add_argument("--output", type=Path, required=True, help="new folder")
    given = options.parse_args()
    is_url = given.qdrant.startswith("http")
    client = QdrantClient(url=given.qdrant) if is_url else QdrantClient(path=given.qdrant)
    if given.command == "export":
        export(client, given.collection, given.output)
    elif given.server:
        vector, level = served_vector(given.server, given.query)
        print(f"level {level}", *hits(client, given.collection, vector), sep="\n")
    else:
        model = ElasticModel.from_pretrained(given.model)
        print(*search(client, given.collection, model, given.query, given.level), sep="\n")


if __name__ == "__main__":
    main()
