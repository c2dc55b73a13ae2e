"""What the tests share: a tiny random BERT with a tokenizer, and an elastic artifact cut from it. All offline."""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from elasticlm.model.structure import ElasticStructure
from elasticlm.model.teacher import load_model

WORDS = """
the a of in to and is how what why glacier ice river rain snow cave form melt water mountain cold warm sun moon sea tide
wind storm cloud forest tree leaf root seed bird fish wolf bear stone sand soil iron gold light sound heat wave north
south east west day night year old new high low fast slow red blue green white black ##s ##ing ##ed
"""


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder with a random BERT (3 layers, 4 heads, 32 neurons, dim 32), its MLM head, tokenizer, mean pooling."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny-bert"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = list(dict.fromkeys(vocabulary + [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]))
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = BertTokenizer(tokenizer_object=backend, model_max_length=64)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(
        [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
         for i, (path, name) in enumerate(modules)]))  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    return folder


@pytest.fixture(scope="session")
def random_scores(tiny_bert):
    """Expressive scores of the tiny BERT's heads [3, 4] and neurons [3, 32]; the last layer's are the lowest."""
    generator = np.random.default_rng(0)
    scale = np.array([[1.0], [1.0], [0.05]])
    return generator.random((3, 4)) * scale, generator.random((3, 32)) * scale


@pytest.fixture(scope="session")
def tiny_artifact(tiny_bert, random_scores, tmp_path_factory):
    """Folder with the tiny BERT pruned to levels 100, 50, 10; level 10 keeps no head in two layers."""
    teacher = load_model(str(tiny_bert))
    structures, head_order, neuron_order = ElasticStructure.from_scores(*random_scores, [100, 50, 10])
    folder = tmp_path_factory.mktemp("artifact") / "tiny"
    teacher.cut(structures, head_order, neuron_order).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_beir(tmp_path_factory):
    """BEIR folder of random sentences: 60 passages in 12 titles; 120 train, 20 dev, 20 test queries cut from them."""
    folder = tmp_path_factory.mktemp("data") / "tiny-beir"
    (folder / "qrels").mkdir(parents=True)
    words = [word for word in WORDS.split() if word.isalpha()]
    generator = np.random.default_rng(1)
    passages = [" ".join(generator.choice(words, 20)) for _ in range(60)]
    corpus = [{"_id": f"p{i}", "title": words[i % 12], "text": text} for i, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in corpus))
    queries, splits = [], {"train": 120, "dev": 20, "test": 20}
    for split, count in splits.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for i in range(count):
            passage = int(generator.integers(60))
            start = int(generator.integers(14))
            text = " ".join(passages[passage].split()[start : start + 6])
            queries.append({"_id": f"{split}{i}", "text": text})
            lines.append(f"{split}{i}\tp{passage}\t1")
        (folder / f"qrels/{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Data sets that are parsed or made go into a temporary cache, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
