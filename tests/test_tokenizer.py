"""python -m pytest tests/test_tokenizer.py

Exact round trips, the loss mask, Megatron's shard layout; every split in transformers, in llama.cpp and in the fast encoder on a hard file.
"""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf as ggml
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xllamacpp
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from transformers import AutoTokenizer

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.data.document import SCHEMA
from openmai.tokenizer import fim
from openmai.tokenizer.automaton import PROPERTIES, compile_split, properties
from openmai.tokenizer.compare import compare, load, load_all
from openmai.tokenizer.config import CompareConfig, EncodeConfig, TrainConfig
from openmai.tokenizer.encode import encode, make_encoders
from openmai.tokenizer.fast import FastEncoder, SlowEncoder, Tables
from openmai.tokenizer.sample import is_validation, rates, take
from openmai.tokenizer.shards import Shard, write_shard
from openmai.tokenizer.splits import SPLITS, name_of
from openmai.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from openmai.tokenizer.train import learn, save, train

TEXT = "The quick brown fox counts 12345 sheep; das Schäfchen zählt 我们 один 🦊.\n\n    def f(x):\n        return x\n"
HARD = (Path(__file__).parent / "data" / "hard_unicode.txt").read_bytes().decode()
# Letters that splits treat differently, to draw random texts from.
ALPHABET = [
    *"abzAZ'sStTrReEvVlLdDmM  \t\n\r\n01239..,/-_[]{}\x00\x1c$+",
    *"éſK中ア\u0301\u200d👩١½\u00a0\u3000\u2028ʼ\u0e31İßǅ가\x85\u200b",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(learn(iter([TEXT] * 20), 400))


@pytest.fixture(scope="module")
def by_split() -> dict[str, Tokenizer]:
    """Return a tokenizer per split, all learned from the hard file and some English and code."""
    lines = [*HARD.splitlines(), TEXT] * 3 + [(Path(__file__).parent.parent / "examples/lessons/python/sqlite3.md").read_text()]
    return {split: Tokenizer(learn(iter(lines), 1200, split)) for split in SPLITS}


class Nothing(Config):
    pass


def write_documents(folder: Path, count: int = 60, group: int | None = None) -> Artifact:
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
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "documents" / "part-00000.parquet", row_group_size=group)
        return work.finish({})


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone_and_merges_are_learned(tokenizer):
    assert [tokenizer.decode([number]) for number in tokenizer.encode("12345")] == list("12345")
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_any_bytes_come_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_bytes_of_a_text_have_the_ids_of_the_text(tokenizer):
    assert tokenizer.encode_bytes(HARD.encode()) == tokenizer.encode(HARD)
    assert tokenizer.decode(tokenizer.encode(HARD)) == HARD
    broken = b"\xff" + HARD.encode()[:50] + b"\xed\xa0\x80\xf0\x9f\x99"  # a surrogate and a character cut short
    assert tokenizer.encode_bytes(broken)[1:-6] == tokenizer.encode(HARD.encode()[:50].decode())


@pytest.mark.parametrize("split", SPLITS)
def test_transformers_gives_the_same_ids(split, by_split, tmp_path):
    save(by_split[split].backend, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (HARD.replace("<|", "<"), *random_texts(20)):  # transformers takes a typed special token for the token
        assert theirs(text, add_special_tokens=True).input_ids == by_split[split].encode(text)
    assert theirs.decode(by_split[split].encode(HARD)) == HARD


@pytest.mark.parametrize("split", SPLITS)
def test_llamacpp_gives_the_same_ids(split, by_split, tmp_path):
    server, ours = serve_vocabulary(by_split[split], split, tmp_path / "model.gguf"), by_split[split]
    for text in (HARD, *random_texts(20)):
        assert post(server, "/tokenize", {"content": text, "parse_special": False})["tokens"] == ours.encode(text)
    chat = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "\n \r\n    Indented."},
        {"role": "user", "content": "\n\nand?"},
    ]
    prompt = post(server, "/apply-template", {"messages": chat})["prompt"]
    if split not in ("gpt-2", "smollm"):  # where any white space is one piece with the line end before it
        assert post(server, "/tokenize", {"content": prompt, "parse_special": True})["tokens"] == ours.render(chat, reply=True)[0]


def post(server: xllamacpp.Server, path: str, body: dict) -> dict:
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def random_texts(count: int, size: int = 300) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=size)) for _ in range(count)]


def serve_vocabulary(tokenizer: Tokenizer, split: str, file: Path) -> xllamacpp.Server:
    """Start llama.cpp with a model of one layer of zeros and the tokenizer as our export writes it."""
    from openmai.export.llamacpp import describe_tokenizer

    save(tokenizer.backend, file.parent)
    writer, rows, width = ggml.GGUFWriter(file, "llama"), tokenizer.vocab_size, 32
    writer.add_vocab_size(rows)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    describe_tokenizer(writer, file.parent, tokenizer, rows)
    shapes = {"token_embd": (rows, width), "output_norm": (width,), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    squares = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name, shape in (shapes | {f"blk.0.{name}": (width, width) for name in squares}).items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads, params.verbosity = 1, 64, 1, -1
    params.fit_params = params.warmup = False
    return xllamacpp.Server(params)


def encode_both(tokenizer: Tokenizer, texts: list[bytes]) -> tuple[list[list[int]], list[list[int]]]:
    """Encode with the fast encoder and its slow twin, an end-of-text token after each text."""
    ends = np.cumsum([len(text) for text in texts])
    spans = [span for end, text in zip(ends, texts, strict=True) for span in ((end - len(text), end), (-1, tokenizer.end_of_text))]
    results = []
    for encoder in (FastEncoder(Tables.of(tokenizer)), SlowEncoder(tokenizer)):
        ids, marks = encoder.encode(np.frombuffer(b"".join(texts), np.uint8), np.array(spans, np.int64))
        results.append([part.tolist() for part in np.split(ids, marks[1:-1:2])])
    return results[0], results[1]


@pytest.mark.parametrize("split", SPLITS)
def test_the_fast_encoder_gives_the_ids_of_its_slow_twin(split, by_split):
    draw = random.Random(1)
    broken = [bytes(draw.choices(HARD.encode() + bytes(range(128, 256)) * 5, k=200)) for _ in range(50)]
    runs = [b"ab" * 3000, *("".join(draw.choices("aberstin", k=size)).encode() for size in (190, 199, 200, 201, 202, 1000))]
    texts = [HARD.encode(), b"", *(text.encode() for text in random_texts(50)), *broken, *runs, HARD.encode() * 2]
    fast, slow = encode_both(by_split[split], texts)
    assert fast == slow
    assert len(fast) == len(texts)
    assert len(fast[0]) < len(HARD.encode()) / 2


FUZZED: dict[str, tuple[FastEncoder, SlowEncoder]] = {}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(ALPHABET).map(str.encode), st.binary(max_size=4)), max_size=40).map(b"".join),
    st.sampled_from(list(SPLITS)),
)
def test_fuzzed_bytes_get_the_same_ids(by_split, data, split):
    if split not in FUZZED:
        FUZZED[split] = FastEncoder(Tables.of(by_split[split])), SlowEncoder(by_split[split])
    fast, slow = (twin.encode(np.frombuffer(data, np.uint8), np.array([(0, len(data))]))[0].tolist() for twin in FUZZED[split])
    assert fast == slow
    assert by_split[split].decode_bytes(fast) == data


def test_the_memo_may_forget(by_split, monkeypatch):
    monkeypatch.setattr("openmai.tokenizer.fast._MEMO_ROWS", 4)
    fast, slow = encode_both(by_split["qwen2"], [HARD.encode()] * 2)
    assert fast == slow


def test_merges_that_come_earlier_are_taken_first(tokenizer):
    """A token that two pairs of merges lead to can make an earlier merge possible in the middle of a round."""
    data = json.loads(tokenizer.backend.to_str())
    letters = [token for token, number in data["model"]["vocab"].items() if number < 262 and not token.startswith("<|")]
    names = [*SPECIAL_TOKENS, *letters, "bc", "ab", "abc", "abcab", "cc", "aabc"]
    data["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    data["model"]["merges"] = [["a", "bc"], ["a", "b"], ["abc", "ab"], ["ab", "c"], ["c", "c"], ["b", "c"], ["a", "abc"]]
    odd = Tokenizer(tokenizer.backend.from_str(json.dumps(data)))
    draw = random.Random(2)
    texts = ["".join(draw.choices("abc", k=draw.choice((3, 9, 30, 300)))).encode() for _ in range(500)]
    fast, slow = encode_both(odd, texts)
    assert fast == slow


def test_a_piece_that_is_a_token_stays_whole_where_llamacpp_keeps_it(by_split):
    """With llama-bpe a token wins over merges that lead past it."""
    data = json.loads(by_split["llama-bpe"].backend.to_str())
    assert data["model"]["ignore_merges"]
    vocab = data["model"]["vocab"]
    assert not vocab.keys() & {"qj", "jv"}
    vocab |= {name: len(vocab) + place for place, name in enumerate(("qj", "jv", "qjv", "qjvq"))}
    data["model"]["merges"] += [["j", "v"], ["q", "j"], ["qj", "v"]]
    odd = Tokenizer(by_split["llama-bpe"].backend.from_str(json.dumps(data)))
    assert odd.encode("qjv") == [vocab["qjv"]] != odd.encode("qjva")[:1]
    fast, slow = encode_both(odd, [b"qjv qjv\tqjva", b"qjvq", b"qjv", b"jv\n\nqjv"])
    assert fast == slow
    assert fast[1] == [vocab["qjvq"], odd.end_of_text]


def test_properties_are_those_of_the_engine():
    """Of the first code points, and of some in all the others, also where planes are taken for empty."""
    numbers = [number for number in [*range(0x3100), *range(0x3100, 0x110000, 37)] if not 0xD800 <= number < 0xE000]
    letters = "".join(map(chr, numbers))
    for name in PROPERTIES:
        without = np.zeros(len(letters), bool)
        for _, (start, stop) in Split(Regex(name), "removed").pre_tokenize_str(letters):
            without[start:stop] = True
        assert np.array_equal(properties()[name][numbers], ~without), name


@pytest.mark.parametrize("pattern", [r"a.b", r"(?<=a)b", r"a(b", r"\w+", r"[a", r"a**", "a)"])
def test_a_split_that_is_not_understood_is_an_error(pattern):
    with pytest.raises(ValueError, match="not understood"):
        compile_split((pattern,))


def test_another_way_of_working_takes_the_slow_way(tokenizer, capsys):
    data = json.loads(tokenizer.backend.to_str())
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    other = Tokenizer(tokenizer.backend.from_str(json.dumps(data)))
    assert name_of(other.backend) is None
    assert name_of(tokenizer.backend) == "qwen2"
    encoder = make_encoders(other)()
    assert isinstance(encoder, SlowEncoder)
    assert "not understood" in capsys.readouterr().err
    ids, _ = encoder.encode(np.frombuffer(TEXT.encode(), np.uint8), np.array([(0, len(TEXT.encode()))]))
    assert ids.tolist() == other.encode(TEXT)


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


@pytest.mark.parametrize("reply", ["\n\nHi.", " \n\t\r\n    indented", "\r\nx", "\n", "  two", ""])
def test_a_reply_that_begins_with_blank_lines_reads_alike_in_transformers(tokenizer, tmp_path, reply):
    save(tokenizer.backend, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "\n\nGo"}, {"role": "assistant", "content": reply}, {"role": "user", "content": "and?"}]
    rendered = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = tokenizer.render(chat)
    assert rendered["input_ids"] == ids
    assert [bool(bit) for bit in rendered["assistant_masks"]] == mask
    written = tokenizer.decode([number for number, learn in zip(ids, mask, strict=True) if learn])
    assert written == {" \n\t\r\n    indented": "    indented", "  two": "  two"}.get(reply, reply.lstrip()) + "<|im_end|>"


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


def test_any_number_of_workers_and_row_groups_gives_the_same_shards(tmp_path):
    one, many = (write_documents(tmp_path / name, group=group) for name, group in (("one", None), ("many", 7)))
    train(TrainConfig(documents=[one.path], out=tmp_path / "tokenizer", vocab_size=330))
    fixed = {"tokenizer": tmp_path / "tokenizer", "validation": 0.2, "fim": {"web": 0.5}}
    a = encode(EncodeConfig(documents=[one.path], out=tmp_path / "a", workers=1, **fixed))
    b = encode(EncodeConfig(documents=[many.path], out=tmp_path / "b", workers=5, **fixed))
    names = {name for name in a.files if name.endswith((".bin", ".idx"))}
    assert len(names) == 8
    assert {a.files[name]["hash"] for name in names} == {b.files[name]["hash"] for name in names}
    assert a.metrics == b.metrics
    for name in ("train-web", "val-books"):
        assert pq.read_table(a.path / f"{name}.parquet").equals(pq.read_table(b.path / f"{name}.parquet"))
    assert not (b.path / "pieces").exists()


_ENCODE = """
import sys, time
from openmai.cli import main
from openmai.tokenizer import encode, pieces
whole = pieces.encode_piece
def slowly(*arguments):
    time.sleep(0.1)
    whole(*arguments)
encode.encode_piece = slowly
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_encode_goes_on_where_it_was(tmp_path):
    documents = write_documents(tmp_path / "documents", group=5)
    train(TrainConfig(documents=[documents.path], out=tmp_path / "tokenizer", vocab_size=330))
    config = EncodeConfig(documents=[documents.path], tokenizer=tmp_path / "tokenizer", out=tmp_path / "cut", workers=1)
    paths = [f"--{name}={tmp_path / name}" for name in ("documents", "tokenizer")]
    process = subprocess.Popen([sys.executable, "-c", _ENCODE, "tokenizer", "encode", *paths, f"--out={config.out}", "--workers=1"])
    pieces = config.out / "pieces"
    while process.poll() is None and sum(name.isdigit() for name in (os.listdir(pieces) if pieces.exists() else ())) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamps = {folder: folder.stat().st_mtime_ns for folder in pieces.iterdir() if folder.suffix != ".tmp"}
    assert 3 <= len(stamps) < 24
    again = encode(config.model_copy(update={"workers": 2}))
    whole = encode(config.model_copy(update={"out": tmp_path / "whole"}))
    assert {name: facts["hash"] for name, facts in again.files.items()} == {name: facts["hash"] for name, facts in whole.files.items()}


def test_bytes_that_are_not_text_survive_in_shards(tmp_path, tokenizer):
    documents = write_documents(tmp_path / "documents", 5)
    rows = pq.read_table(documents.path / "documents" / "part-00000.parquet")
    bad = pa.array([b"caf\xe9 \xff\x00 ok", b"\xf0\x9f\x99"]).view(pa.string())  # what a careless writer leaves in a column of strings
    with create(tmp_path / "bad", kind="documents", version=2, config=Nothing()) as work:
        (work.path / "documents").mkdir()
        pq.write_table(rows.slice(4, 2).set_column(1, "text", bad), work.path / "documents" / "part-00000.parquet")
        made = work.finish({})
    train(TrainConfig(documents=[documents.path], out=tmp_path / "tokenizer", vocab_size=320))
    shards = encode(EncodeConfig(documents=[made.path], tokenizer=tmp_path / "tokenizer", out=tmp_path / "shards", validation=0))
    written = Tokenizer.load(tmp_path / "tokenizer").decode_bytes(Shard(shards.path / "train-books").tokens.tolist())
    assert written == b"caf\xe9 \xff\x00 ok<|endoftext|>"


def test_fill_in_the_middle_keeps_the_text_and_the_choice(tmp_path):
    documents = write_documents(tmp_path / "documents", 400)
    train(TrainConfig(documents=[documents.path], out=tmp_path / "tokenizer", vocab_size=330))
    config = EncodeConfig(
        documents=[documents.path], tokenizer=tmp_path / "tokenizer", out=tmp_path / "fim", fim={"web": 0.5}, spm=0.25, validation=0.1
    )
    shards, tokenizer = encode(config), Tokenizer.load(tmp_path / "tokenizer")
    table = pq.read_table(shards.path / "train-web.parquet").to_pylist()
    orders = [row["fim"] for row in table]
    assert 0.4 < 1 - orders.count("") / len(orders) < 0.6
    assert 0.15 < orders.count("spm") / (len(orders) - orders.count("")) < 0.35
    assert shards.metrics["splits"]["train"]["web"]["fim"] == len(orders) - orders.count("")
    assert set(pq.read_table(shards.path / "val-web.parquet")["fim"].to_pylist()) == {""}
    assert set(pq.read_table(shards.path / "train-books.parquet")["fim"].to_pylist()) == {""}
    prefix, middle, suffix = (tokenizer.special[f"<|fim_{part}|>"] for part in ("prefix", "middle", "suffix"))
    cuts = set()
    for row, ids in zip(table, Shard(shards.path / "train-web").documents(), strict=True):
        text, ids = f"{TEXT} number {int(row['id'][3:]) * 7919}", ids[:-1].tolist()
        if row["fim"] == "psm":
            assert ids[0] == prefix
            a, b = ids.index(suffix), ids.index(middle)
            ids, cut = ids[1:a] + ids[b + 1 :] + ids[a + 1 : b], len(tokenizer.decode(ids[1:a]))
            cuts.add(cut)
        elif row["fim"] == "spm":
            assert ids[:2] == [prefix, suffix]
            ids = ids[ids.index(middle) + 1 :] + ids[2 : ids.index(middle)]
        assert tokenizer.decode(ids) == text
    assert len(cuts) > 40
    assert fim.choose("web7", 0.5, 0.5) == fim.choose("web7", 0.5, 0.5)
    with pytest.raises(OpenmaiError, match=r"fim\.wed: no such source in the documents; known: books, web"):
        encode(config.model_copy(update={"fim": {"wed": 0.5}, "out": tmp_path / "other"}))


def test_weights_set_the_shares_of_the_text(tmp_path):
    documents = write_documents(tmp_path / "documents", 100)
    sizes = {"books": 10_000, "web": 10_000}
    rate = rates(sizes, {"books": 3, "web": 1}, 1e9)
    assert rate == {"books": 1.5, "web": 0.5}
    assert rates(sizes, {}, 5000) == {"books": 0.25, "web": 0.25}
    taken = list(take([documents], rate))
    assert [source for source, _, _ in taken].count("books") == 150
    assert [source for source, _, _ in taken].count("web") == 50
    assert taken == list(take([documents], rate))
    assert len({text for source, _, text in taken if source == "books"}) == 100  # all of them, half of them twice
    with pytest.raises(OpenmaiError, match=r"weights\.code: no text of this source .* known: books, web"):
        rates(sizes, {"code": 1}, 1e9)
    made = train(TrainConfig(documents=[documents.path], out=tmp_path / "t", vocab_size=320, weights={"books": 3, "web": 1}))
    assert 2.9 < made.metrics["learned_from"]["books"] / made.metrics["learned_from"]["web"] < 3.1


def test_held_out_documents_are_not_learned_from(tmp_path):
    documents = write_documents(tmp_path / "documents", 100)
    whole = train(TrainConfig(documents=[documents.path], out=tmp_path / "whole", vocab_size=320))
    part = train(TrainConfig(documents=[documents.path], out=tmp_path / "part", vocab_size=320, held_out=0.3))
    held = sum(is_validation(f"{name}{number}", 0.3) for name in ("books", "web") for number in range(100))
    assert 0 < held < 200
    assert part.metrics["learned_from_bytes"] / whole.metrics["learned_from_bytes"] == pytest.approx(1 - held / 200, abs=0.01)
    assert part.metrics["compression"][0]["bytes"] == pytest.approx(held * len(TEXT.encode()), rel=0.2)
    with pytest.raises(OpenmaiError, match="no document falls into it"):
        train(TrainConfig(documents=[documents.path], out=tmp_path / "none", vocab_size=320, held_out=1e-9))


def test_too_large_a_vocabulary_is_an_error(tmp_path):
    documents = write_documents(tmp_path / "documents", 2)
    with pytest.raises(OpenmaiError, match=r"vocab_size=5000: the text supports only \d+ tokens"):
        train(TrainConfig(documents=[documents.path], out=tmp_path / "tokenizer", vocab_size=5000))


def write_ranks(folder: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    """Write a tokenizer as a rank file and as GPT-2's two files."""
    data = json.loads(tokenizer.backend.to_str())["model"]
    tokens = [text for text in tokenizer.token_bytes if not text.startswith(b"<|")]
    ranks = folder / "cl100k_base.tiktoken"
    ranks.write_text("".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    (folder / "gpt2").mkdir()
    (folder / "gpt2" / "encoder.json").write_text(json.dumps(data["vocab"]))
    (folder / "gpt2" / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in data["merges"]))
    return {"ranks": ranks, "gpt2": folder / "gpt2"}


def test_tokenizers_are_compared_by_source_and_language(tmp_path, by_split, capsys):
    pytest.importorskip("tiktoken")
    documents = write_documents(tmp_path / "documents", 5)
    (tmp_path / "ours").mkdir()
    save(by_split["gpt-2"].backend, tmp_path / "ours")
    files = write_ranks(tmp_path, by_split["llama-bpe"])
    names = [str(tmp_path / "ours"), str(tmp_path / "ours" / "tokenizer.json"), str(files["ranks"]), str(files["gpt2"])]
    compare(CompareConfig(tokenizers=[names[0], *names[2:]], documents=[documents.path], as_json=True))
    rows = json.loads(capsys.readouterr().out)
    assert [(row["source"], row["language"]) for row in rows] == [("", ""), ("books", "en"), ("web", "en")]
    assert set(rows[0]["bytes_per_token"]) == {"ours", "cl100k_base", "gpt2"}
    texts = [f"{TEXT} number {number * 7919}" for number in range(5)]
    size = sum(len(text.encode()) for text in texts)
    assert rows[1]["bytes"] == size
    assert rows[1]["bytes_per_token"]["ours"] == size / sum(len(by_split["gpt-2"].encode(text)) for text in texts)
    assert load(names[2])([HARD]) == [len(by_split["llama-bpe"].encode(HARD))]
    assert set(load_all(names[:2])) == set(names[:2])  # both would be called "ours"
    compare(CompareConfig(tokenizers=names[:1], documents=[documents.path]))
    assert capsys.readouterr().out.splitlines()[0].split() == ["source", "language", "MB", "ours"]


def test_comparison_counts_or_says_what_is_missing(monkeypatch, tmp_path):
    pytest.importorskip("tiktoken")
    with pytest.raises(OpenmaiError, match="compare=nonsense: no such file, and cannot be had"):
        load("nonsense")
    (tmp_path / "odd.tiktoken").write_text("")
    with pytest.raises(OpenmaiError, match=r"odd\.tiktoken: a rank file does not say how text is split"):
        load(str(tmp_path / "odd.tiktoken"))
    with pytest.raises(OpenmaiError, match="not a tokenizer"):
        load(str(tmp_path))
    for name, value in {"TIKTOKEN_CACHE_DIR": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OpenmaiError, match=r"compare=gpt2: .*cannot be had .*TIKTOKEN_CACHE_DIR"):
        load("gpt2")
