"""Ray Serve with several archives: our wire, the clients of other servers, the schedule, and a replica that dies."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import cohere
import huggingface_hub
import openai
import pytest
import requests
from archives import index_of
from driving import QUERIES, ask, max_diff, standing_still
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings

from elasticlm.benchmarks.ray_server import RayServer
from elasticlm.model.teacher import load_model

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

DOCUMENTS = ["the moon and the tide", "a wolf in the snow", "what is a glacier", "the river and the rain"]


@pytest.fixture(scope="module")
def ray(archives):
    """T is 20 s: everything is answered at level 100 unless a request asks for less."""
    settings = {"policy": "deadline", "latency_budget_ms": 20_000, "late": "shed", "correct_table": False}
    arguments = {"num_cpus": 0.2, "queue_size": 50, "settings": settings}
    with RayServer([archives[name] for name in ("search", "score", "classify")], arguments=arguments) as running:
        yield running


@pytest.fixture(scope="module")
def teacher(tiny_bert):
    return load_model(tiny_bert)


@pytest.fixture(scope="module")
def reranker(hugging_face):
    return load_model(hugging_face["score"])


def test_every_task_in_our_wire(ray, teacher, tiny_bert, reranker, hugging_face):
    """Also with the headers that TorchServe's answers have."""
    reply = ask(ray, "search", {"query": QUERIES[0], "k": 3})
    scores, ids = index_of(tiny_bert).search(teacher.embed(QUERIES[:1]).numpy(), 3)
    assert [hit["id"] for hit in reply.json()["hits"]] == ids[0]
    assert max_diff([hit["score"] for hit in reply.json()["hits"]], scores[0]) < 1e-5
    for header in ("X-Elastic-Level", "X-Elastic-Queue-Depth", "X-Elastic-Service-Ms", "Server-Timing"):
        assert header in reply.headers
    reply = ask(ray, "score", {"query": QUERIES[0], "passages": DOCUMENTS})
    assert max_diff(reply.json()["scores"], reranker.score(QUERIES[0], DOCUMENTS)) < 1e-5
    reply = ask(ray, "classify", {"sentence1": QUERIES[0], "sentence2": QUERIES[1]})
    logits = load_model(hugging_face["classify"]).classify([QUERIES[0]], [QUERIES[1]])
    assert max_diff(list(reply.json()["scores"].values()), logits[0].softmax(-1)) < 1e-5


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/predictions/serch", b"{}", 404, "unknown_model"),
        ("/predictions/search", b"", 400, "no_body"),
        ("/predictions/search", b"{", 400, "bad_json"),
        ("/predictions/search", b'{"txt": "ice"}', 400, "unknown_field"),
        ("/predictions/search", b'{"text": "' + b"a" * (1 << 22) + b'"}', 413, "too_large"),
        ("/predictions/score", b'{"text": "ice"}', 400, "wrong_task"),
    ],
)
def test_bad_requests_get_a_status_and_a_code(ray, path, body, status, code):
    reply = requests.post(ray.inference_url + path, data=body, timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_models_and_readiness(ray):
    models = requests.get(f"{ray.inference_url}/v1/models", timeout=30).json()["data"]
    assert {model["id"]: model["task"] for model in models} == {
        "search": "embed", "score": "score", "classify": "classify",
    }  # fmt: skip
    assert requests.get(f"{ray.inference_url}/ready", timeout=30).json()["status"] == "RUNNING"
    assert requests.get(f"{ray.inference_url}/ping", timeout=30).status_code == 200


# -- Clients of other servers ------------------------------------------------------------------------------------------


def test_the_openai_client_gets_the_teachers_vectors(ray, teacher):
    client = openai.OpenAI(base_url=f"{ray.inference_url}/v1", api_key="none")
    for encoding in ({"encoding_format": "float"}, {}):  # without one it asks for base64
        reply = client.embeddings.create(model="search", input=QUERIES, **encoding)
        assert max_diff([item.embedding for item in reply.data], teacher.embed(QUERIES)) < 1e-5
        assert (reply.model, reply.level) == ("search", 100)
        assert reply.usage.prompt_tokens == int(teacher.tokenize(QUERIES)["attention_mask"].sum())
    one = client.embeddings.create(model="search", input=QUERIES[0])
    assert max_diff(one.data[0].embedding, teacher.embed(QUERIES[:1])[0]) < 1e-5
    assert "search" in [model.id for model in client.models.list()]


def test_the_openai_client_gets_errors_that_it_understands(ray):
    client = openai.OpenAI(base_url=f"{ray.inference_url}/v1", api_key="none")
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="search", input=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="input"):
        client.embeddings.create(model="search", input=[""])
    with pytest.raises(openai.NotFoundError, match="did you mean 'search'"):
        client.embeddings.create(model="serch", input="ice")
    with pytest.raises(openai.BadRequestError, match="'score'"):
        client.embeddings.create(model="score", input="ice")


def test_langchain_gets_the_teachers_vectors(ray, teacher):
    settings = {"base_url": f"{ray.inference_url}/v1", "api_key": "none", "model": "search"}
    embeddings = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    assert max_diff(embeddings.embed_documents(QUERIES), teacher.embed(QUERIES)) < 1e-5
    assert max_diff(embeddings.embed_query(QUERIES[0]), teacher.embed(QUERIES[:1])[0]) < 1e-5


def test_the_cohere_client_gets_the_teachers_order(ray, reranker):
    scores = reranker.score(QUERIES[0], DOCUMENTS)
    client = cohere.ClientV2(api_key="none", base_url=ray.inference_url)
    reply = client.rerank(model="score", query=QUERIES[0], documents=DOCUMENTS, top_n=3)
    assert [result.index for result in reply.results] == scores.argsort(descending=True)[:3].tolist()
    expected = scores.sigmoid().sort(descending=True).values[:3]
    assert max_diff([result.relevance_score for result in reply.results], expected) < 1e-5


def test_a_jina_call_gets_the_teachers_order(ray, reranker):
    body = {"model": "score", "query": QUERIES[0], "documents": [{"text": text} for text in DOCUMENTS],
            "return_documents": True}  # fmt: skip
    reply = requests.post(f"{ray.inference_url}/v1/rerank", json=body, timeout=30).json()
    order = reranker.score(QUERIES[0], DOCUMENTS).argsort(descending=True).tolist()
    assert [result["document"]["text"] for result in reply["results"]] == [DOCUMENTS[i] for i in order]
    assert reply["usage"]["total_tokens"] > 0


def test_tei_clients_get_the_teachers_vectors_and_order(ray, teacher, reranker, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # or its client refuses any request
    for path in ("/embed", "/models/search/embed"):
        client = InferenceClient(ray.inference_url + path)
        assert max_diff(client.feature_extraction(QUERIES[0]), teacher.embed(QUERIES[:1])) < 1e-5
    body = {"query": QUERIES[0], "texts": DOCUMENTS, "raw_scores": True}
    reply = requests.post(f"{ray.inference_url}/rerank", json=body, timeout=30)
    scores = reranker.score(QUERIES[0], DOCUMENTS)
    assert [result["index"] for result in reply.json()] == scores.argsort(descending=True).tolist()
    assert max_diff([result["score"] for result in reply.json()], scores.sort(descending=True).values) < 1e-5
    assert reply.headers["X-Elastic-Level"] == "100"


# -- The schedule ------------------------------------------------------------------------------------------------------


def test_the_level_falls_in_a_rush_and_rises_afterwards(ray, model):
    """With 60 ms for level 100 and a budget of 200 ms, twenty requests at once cannot all be answered at level 100."""
    texts, budget = (QUERIES * 3)[:20], {"X-Latency-Budget-Ms": "200"}
    with ThreadPoolExecutor(len(texts)) as pool, standing_still(ray.workers("search")):
        futures = [pool.submit(ask, ray, "search", {"text": text}, **budget) for text in texts]
        time.sleep(0.1)
    replies = [future.result() for future in futures]
    assert {reply.status_code for reply in replies} <= {200, 504}
    answered = [(reply, text) for reply, text in zip(replies, texts, strict=True) if reply.ok]
    assert {reply.json()["level"] for reply, _ in answered} & {50, 10}
    assert max(int(reply.headers["X-Elastic-Queue-Depth"]) for reply in replies) >= 2
    for reply, text in answered:
        assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5
    assert ask(ray, "search", {"text": "ice"}, **budget).json()["level"] == 100


def test_a_request_can_ask_for_a_smaller_budget(ray):
    assert ask(ray, "search", {"text": "ice"}, **{"X-Latency-Budget-Ms": "70"}).json()["level"] == 50
    assert ask(ray, "search", {"text": "ice"}, **{"X-Latency-Budget-Ms": "soon"}).status_code == 400


def test_metrics_have_the_names_of_torchserve_behind_rays_prefix(ray):
    ask(ray, "search", {"text": "ice"})
    deadline = time.monotonic() + 30
    wanted = ("ray_elastic_answers_total", "ray_elastic_work_seconds_total", "ray_elastic_queue_depth",
              "ray_elastic_service_seconds_bucket")  # fmt: skip
    while True:
        text = requests.get(f"{ray.metrics_url}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if 'deployment="search"' in line]
        if all(any(line.startswith(name + "{") for line in lines) for name in wanted):
            return
        assert time.monotonic() < deadline, text[-3000:]
        time.sleep(1)


def test_a_killed_replica_is_replaced_and_its_requests_get_a_status(ray, model):
    texts = (QUERIES * 3)[:12]
    with ThreadPoolExecutor(len(texts)) as pool:
        futures = [pool.submit(ask, ray, "search", {"text": text}) for text in texts]
        os.kill(ray.workers("search")[0]["pid"], signal.SIGKILL)
        replies = [future.result() for future in futures]
    assert {reply.status_code for reply in replies} <= {200, 503, 504}
    for reply, text in zip(replies, texts, strict=True):
        if reply.ok:
            assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5
        else:
            assert reply.json()["error"]["code"] in ("replica_lost", "late")
    deadline = time.monotonic() + 60
    while not ask(ray, "search", {"text": "ice"}).ok:
        assert time.monotonic() < deadline
        time.sleep(0.5)
