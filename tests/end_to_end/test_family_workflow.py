"""Every encoder family through the commands, and served: from Hugging Face's folder to a vector by HTTP."""

import json

import pytest
import torch
from driving import MEANS_MS, ask, ask_idle, max_diff
from families import tiny_teacher
from random_texts import make_texts
from torch.nn import functional as F

from elasticlm.__main__ import main
from elasticlm.benchmarks.server import TorchServe
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.families import FAMILIES
from elasticlm.schedule.latency import LatencyTable, Setup

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

UNLIKE_BERT = ("modernbert", "mpnet")
"""Families whose layers differ from BERT's: with these every task is trained."""
STEPS = "--max-steps 2 --batch-size 8 --dev-examples 8"


def run(line, **values):
    """Run a command; names in braces stand for the values."""
    main([word.format(**values) for word in line.split()])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, tiny_beir):
    """A folder for each family with its teacher, and what the commands made of it."""
    top = tmp_path_factory.mktemp("workshop")
    for name in FAMILIES:
        at = {"data": f"beir:{tiny_beir}", "folder": top / name, "name": name}
        tiny_teacher(name, top / name / "teacher", "ForMaskedLM", noise=0.05)
        run("prune --teacher {folder}/teacher --pooling mean --score-loss mlm --data {data} --levels 100,50,10 "
            "--max-examples 16 --output {folder}/pruned", **at)  # fmt: skip
        run("index --model {folder}/pruned --data {data} --output {folder}/index", **at)
        run(f"finetune --task align --model {{folder}}/pruned --data {{data}} --index {{folder}}/index {STEPS} "
            "--output {folder}/aligned", **at)  # fmt: skip
        run("evaluate --model {folder}/aligned --data {data} --split test --index {folder}/index "
            "--output {folder}/test.json", **at)  # fmt: skip
        run("export --model {folder}/aligned --onnx fp32 int8 --data {data}", **at)
        table = LatencyTable(LatencyTable.from_means(MEANS_MS).cells, Setup(backend="onnx"))
        table.write(top / name / "aligned/latency.csv")
        run("archive --model {folder}/aligned --name {name} --index {folder}/index --output {folder}/store", **at)
    return top


@pytest.fixture(scope="module")
def server(workshop):
    with TorchServe({name: workshop / name / f"store/{name}.mar" for name in FAMILIES}) as running:
        yield running


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_idle_server_answers_with_the_teachers_own_vector(workshop, server, name):
    theirs = FAMILIES[name].load(workshop / name / "teacher")
    tokenizer = ElasticModel.from_pretrained(workshop / name / "aligned").tokenizer
    for text in ("how does ice form", "river " * 90):
        with torch.no_grad():
            hidden = theirs(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state
        reply = ask_idle(server, name, {"text": text})
        assert reply.status_code == 200, reply.text
        assert max_diff(reply.json()["embedding"], hidden.mean(1)[0]) < 1e-4
    hits = ask(server, name, {"query": "how does ice form", "k": 3}).json()["hits"]
    assert len(hits) == 3


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_level_100_keeps_all_of_the_teacher(workshop, name):
    found = json.loads((workshop / name / "test.json").read_text())
    assert found["per_query"]["100"] == found["per_query"]["teacher"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_int8_comes_near(workshop, name):
    models = [ElasticModel.from_pretrained(workshop / name / "aligned", backend=backend, precision=precision)
              for backend, precision in (("torch", "fp32"), ("onnx", "int8"))]  # fmt: skip
    for level in models[0].levels:
        vectors = [model.embed(["the river is cold", "ice"], level=level) for model in models]
        assert F.cosine_similarity(*vectors).min() > 0.97, level


@pytest.mark.parametrize("name", UNLIKE_BERT)
def test_every_task_can_be_trained(workshop, tiny_beir, name):
    folder = workshop / name
    texts = make_texts(40, seed=0)
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "glue").mkdir()
    rows = [{"sentence1": text, "sentence2": None, "label": i % 2} for i, text in enumerate(texts)]
    (folder / "glue/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    at = {"data": f"beir:{tiny_beir}", "folder": folder}
    run("prune --teacher {folder}/teacher --pooling mean --top shared --data {data} --levels 100,50,10 "
        "--max-examples 16 --output {folder}/shared", **at)  # fmt: skip
    common = f"--model {{folder}}/shared --output {{folder}}/out --overwrite {STEPS}"
    run(f"distil --teacher {{folder}}/teacher --data text:{{folder}}/texts.txt --relation-heads 4 {common}", **at)
    for task, data in (("retrieve", "{data}"), ("rerank", "{data}"), ("classify", "glue:{folder}/glue")):
        run(f"finetune --task {task} --data {data} {common}", **at)
        model = ElasticModel.from_pretrained(folder / "out")
        assert all(weight.isfinite().all() for weight in model.state_dict().values()), task
