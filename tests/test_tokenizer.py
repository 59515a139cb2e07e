"""python -m pytest tests/test_tokenizer.py

Exact round trips, the loss mask, and Megatron's shard layout.
"""

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.data.document import SCHEMA
from openmai.tokenizer.config import EncodeConfig, TrainConfig
from openmai.tokenizer.encode import encode, is_validation
from openmai.tokenizer.shards import Shard, write_shard
from openmai.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from openmai.tokenizer.train import count_tokens, learn, train

TEXT = "The quick brown fox counts 12345 sheep; das Schäfchen zählt 我们 один 🦊.\n\n    def f(x):\n        return x\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(learn(iter([TEXT] * 20), 400))


class Nothing(Config):
    pass


def write_documents(folder: Path, count: int = 60) -> Artifact:
    rows = [
        {
            "id": f"{name}{number}",
            "text": f"{TEXT} number {number * 7919}",
            "url": "",
            "source": name,
            "license": "",
            "language": "en",
            "date": "",
            "scores": [],
            "meta": "{}",
        }
        for name in ("books", "web")
        for number in range(count)
    ]
    with create(folder, kind="documents", version=1, config=Nothing()) as work:
        (folder / "documents").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "documents" / "part-00000.parquet")
        return work.finish({})


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone_and_merges_are_learned(tokenizer):
    assert [tokenizer.decode([number]) for number in tokenizer.encode("12345")] == list("12345")
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_in_a_text_are_text(tokenizer, token):
    ids = tokenizer.encode(f"say {token} now")
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == f"say {token} now"


def test_the_mask_covers_the_assistant_and_its_end_of_turn(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Count <|im_end|> sheep"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "Two."},
    ]
    ids, mask = tokenizer.render(messages)
    learned = tokenizer.decode([number for number, learn in zip(ids, mask, strict=True) if learn])
    assert learned == "One.<|im_end|>Two.<|im_end|>"
    assert ids.count(tokenizer.end_of_turn) == len(messages)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nTwo.<|im_end|>\n")
    assert ids[0] == tokenizer.start_of_turn  # no BOS, single or double
    assert tokenizer.render(messages[:-1], reply=True)[0] == ids[: len(ids) - len(tokenizer.encode("Two.")) - 2]


def test_a_bad_message_is_named(tokenizer):
    with pytest.raises(OpenmaiError, match=r"message 1: role='robot'"):
        tokenizer.render([{"role": "user", "content": "hi"}, {"role": "robot", "content": "hi"}])
    with pytest.raises(OpenmaiError, match="NoneType"):
        tokenizer.render([{"role": "user", "content": None}])


@pytest.mark.parametrize(("vocabulary", "code", "size"), [(65_499, 8, 2), (65_500, 4, 4)])
def test_shards_have_megatron_layout(tmp_path, vocabulary, code, size):
    assert write_shard(tmp_path / "a", iter([[1, 2, 3], [4, 5]]), vocabulary) == (2, 5)
    data = (tmp_path / "a.idx").read_bytes()
    assert data[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<QBQQ", data[9:34]) == (1, code, 2, 3)
    assert list(np.frombuffer(data, np.int32, 2, 34)) == [3, 2]
    assert list(np.frombuffer(data, np.int64, 2, 42)) == [0, 3 * size]
    assert list(np.frombuffer(data, np.int64, 3, 58)) == [0, 1, 2]
    shard = Shard(tmp_path / "a")
    assert [list(document) for document in shard.documents()] == [[1, 2, 3], [4, 5]]


def test_a_cut_shard_is_an_error(tmp_path):
    write_shard(tmp_path / "a", iter([[1, 2, 3]]), 100)
    (tmp_path / "a.bin").write_bytes(b"\0\0")
    with pytest.raises(OpenmaiError, match=r"a\.bin: 2 bytes, but its index says 6"):
        Shard(tmp_path / "a")


def test_verbs_train_and_encode(tmp_path):
    documents = write_documents(tmp_path / "documents")
    train(TrainConfig(documents=[documents.path], out=tmp_path / "tokenizer", vocab_size=330))
    config = EncodeConfig(documents=[documents.path], tokenizer=tmp_path / "tokenizer", out=tmp_path / "shards", validation=0.2)
    shards = encode(config)
    counts = shards.metrics["splits"]
    assert set(counts["train"]) == {"books", "web"}
    assert sum(counts[split]["web"]["documents"] for split in ("train", "val")) == 60
    assert counts["val"]["web"]["documents"] == sum(is_validation(f"web{number}", 0.2) for number in range(60)) > 0
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    table = pq.read_table(shards.path / "train-web.parquet").to_pylist()
    for row, ids in zip(table, Shard(shards.path / "train-web").documents(), strict=True):
        assert ids[-1] == tokenizer.end_of_text
        assert tokenizer.decode(ids[:-1]) == f"{TEXT} number {int(row['id'][3:]) * 7919}"
    assert encode(config).created == shards.created  # nothing to do


def test_too_large_a_vocabulary_is_an_error(tmp_path):
    documents = write_documents(tmp_path / "documents", 2)
    with pytest.raises(OpenmaiError, match=r"vocab_size=5000: the text supports only \d+ tokens"):
        train(TrainConfig(documents=[documents.path], out=tmp_path / "tokenizer", vocab_size=5000))


def test_comparison_counts_or_says_what_is_missing(monkeypatch, tmp_path):
    pytest.importorskip("tiktoken")
    with pytest.raises(OpenmaiError, match="compare=nonsense: cannot be had"):
        count_tokens("nonsense", "text")
    for name, value in {"TIKTOKEN_CACHE_DIR": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OpenmaiError, match=r"compare=gpt2: cannot be had .*TIKTOKEN_CACHE_DIR"):
        count_tokens("gpt2", "text")
