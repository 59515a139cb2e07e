"""python -m pytest tests/test_loader.py

Best-fit packing, document masks, the batch ramp and the thread that reads ahead: nothing lost, nothing twice, the same from anywhere.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.base.events import read_events
from openmai.cli import main
from openmai.model.config import ModelConfig
from openmai.model.loss import token_nats
from openmai.model.transformer import Transformer
from openmai.tokenizer.shards import Shard, write_shard
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train import packing
from openmai.train.loader import Ahead, Mixture, Phase, PretrainBatches, batch_span
from openmai.train.packing import Packer, pack

END, CONTEXT = 0, 32


def documents(seed: int, count: int, longest: int = 90) -> list[np.ndarray]:
    """Documents whose tokens tell where they come from; each ends with END. Sizes as on the web: most are short."""
    random = np.random.default_rng(seed)
    sizes = np.clip((longest * random.random(count) ** 3).astype(int), 2, longest)
    ends = np.cumsum(sizes)
    return [np.append(np.arange(end - size + 1, end), END) for size, end in zip(sizes, ends, strict=True)]


def packer(texts: list[np.ndarray], key: int = 1) -> Packer:
    sizes = np.array([len(text) for text in texts])
    return Packer(np.cumsum(sizes) - sizes, int(sizes.sum()), CONTEXT, key)


def mixture(seed: int = 3, phases: tuple[Phase, ...] = (), masks: bool = True) -> Mixture:
    texts = [documents(1, 400), documents(2, 150, 200)]
    streams = [np.concatenate(text) + 100_000 * n for n, text in enumerate(texts)]
    packers = tuple(packer(text, seed * 100 + n) for n, text in enumerate(texts))
    return Mixture(["a", "b"], streams, np.array([3.0, 1.0]), CONTEXT, seed, phases, packers, masks)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW", 8)
    monkeypatch.setattr(packing, "BLOCK", 3)


@pytest.mark.parametrize("context", [8, 64, 1000])
def test_pack_takes_the_fewest_rows_and_keeps_every_token(context: int) -> None:
    random = np.random.default_rng(context)
    for count in (0, 1, 2, 300):
        sizes = random.integers(1, context + 1, count).tolist()
        starts = (np.cumsum(sizes, dtype=int) - sizes).tolist() if count else []
        rows = pack(list(zip(starts, sizes, strict=True)), context)
        assert len(rows) == -(-sum(sizes) // context)
        assert all(0 < sum(size for _, size in row) <= context for row in rows)
        found = sorted(token for row in rows for start, size in row for token in range(start, start + size))
        assert found == list(range(sum(sizes)))


def test_pack_cuts_only_where_no_row_has_room() -> None:
    """Halves, thirds and sixths fit without a cut, whatever their order."""
    sizes = [6, 4, 2, 6, 6, 8, 4, 10, 2, 12]
    rows = pack([(100 * n, size) for n, size in enumerate(sizes)], 12)
    assert sorted(size for row in rows for _, size in row) == sorted(sizes)
    assert sum(map(len, pack([(10 * n, 5) for n in range(8)], 8))) == 12  # five rows, each with room for 3: four cuts at least


def test_best_fit_takes_the_fullest_row_with_room() -> None:
    rows = pack([(0, 7), (10, 6), (20, 3), (30, 4)], 10)
    assert sorted(sorted(start for start, _ in row) for row in rows) == [[0, 20], [10, 30]]


@pytest.mark.parametrize("small", [True, False])
def test_an_epoch_shows_every_token_once_as_a_target(small: bool, request: pytest.FixtureRequest) -> None:
    if small:
        request.getfixturevalue("small_windows")
    rows = packer(documents(5, 300))
    orders = []
    for epoch in range(3):
        pieces = [rows.row(epoch, place) for place in range(rows.rows)]
        seen = sorted(token for row in pieces for start, size in row for token in range(start, start + size))
        assert seen == list(range(rows.tokens)), epoch
        orders.append([row[0] for row in pieces])
    assert orders[0] != orders[1] != orders[2]


def test_padding_is_less_than_a_row_in_a_window() -> None:
    rows = packer(documents(6, 30_000))
    windows = len(rows.counts)
    assert windows > 10
    waste = rows.rows * CONTEXT - rows.tokens
    assert waste < windows * CONTEXT
    assert waste / (rows.rows * CONTEXT) < 0.002


def test_long_documents_are_cut_at_other_places_in_the_next_epoch() -> None:
    rows = packer([np.append(np.arange(1, 100), END)])  # 100 tokens: three rows and 4 tokens
    starts = [{start for place in range(rows.rows) for start, _ in rows.row(epoch, place)} for epoch in range(2)]
    assert starts == [{0, 32, 64, 96}, {0, 4, 36, 68}]


def test_samples_predict_each_document_from_the_end_before_it(small_windows: None) -> None:
    """Ids are the targets one token earlier, the first one's being end-of-text or, in a cut document, the token before the cut."""
    both = mixture()
    found = both.samples(0, 60)
    for ids, targets, numbers in zip(found["ids"], found["targets"], found["documents"], strict=True):
        used = targets != -100
        for number in np.unique(numbers[used]):
            inside = np.flatnonzero((numbers == number) & used)
            source = int(targets[inside[0]] >= 100_000)
            stream = both.streams[source]
            start = int(np.flatnonzero(stream == targets[inside[0]])[0]) if targets[inside[0]] % 100_000 != END else None
            if start is not None:
                assert (stream[start : start + len(inside)] == targets[inside]).all()
                assert ids[inside[0]] == stream[start - 1]
            assert (ids[inside[1:]] == targets[inside[:-1]]).all()
        assert (numbers[~used] == 0).all()
    assert "documents" not in mixture(masks=False).samples(0, 2)


def test_any_start_and_any_number_of_processes_give_the_same_samples(small_windows: None) -> None:
    phases = (Phase("web", 61, np.array([3.0, 1.0])), Phase("books", 40, np.array([1.0, 4.0])))
    whole = mixture(phases=phases).samples(0, 120)
    for step in (1, 7, 50):
        parts = [mixture(phases=phases).samples(start, min(step, 120 - start)) for start in range(0, 120, step)]
        for name, expected in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), expected), (step, name)
    for size in (1, 2, 4):
        shares = [PretrainBatches(mixture(phases=phases), 8, 2, rank, size)(5) for rank in range(size)]
        rows = torch.cat([micro["targets"] for share in shares for micro in share]).numpy()
        assert np.array_equal(rows, whole["targets"][40:48])
    assert not np.array_equal(whole["ids"], mixture(seed=4, phases=phases).samples(0, 120)["ids"])


def test_epochs_of_a_mixture_are_exact(small_windows: None) -> None:
    both = mixture()
    size = both.packers[0].rows
    first = [(source, number) for source, number in both.allotted(0, 3 * size) if source == 0 and number < size]
    assert len(first) == size
    assert both.epochs(4 * size) == pytest.approx([3.0, size / both.packers[1].rows], rel=0.01)


def test_windows_can_be_masked_too() -> None:
    stream = np.array([4, 5, END, 6, 7, 8, END, 9, END])
    found = Mixture(["a"], [stream], np.array([1.0]), 8, 0, masks=True).samples(0, 1)
    assert found["ids"].tolist() == [[4, 5, END, 6, 7, 8, END, 9]]
    assert found["documents"].tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]]


def test_a_packed_row_has_the_losses_of_its_documents_alone(small_windows: None) -> None:
    torch.manual_seed(0)
    texts = [np.append(np.random.default_rng(n).integers(1, 40, size), END) for n, size in enumerate([9, 14, 5, 3, 20, 7])]
    lengths = np.array([len(text) for text in texts])
    rows = Packer(np.cumsum(lengths) - lengths, int(lengths.sum()), CONTEXT, 0)
    packed = Mixture(["a"], [np.concatenate(texts)], np.array([1.0]), CONTEXT, 0, (), (rows,), True).samples(0, rows.rows)
    model = Transformer(ModelConfig(vocab_size=40, num_layers=2, width=32, num_heads=2, ffn_width=32, qk_norm=True, smear=True))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids, targets, numbers = (torch.from_numpy(packed[name]) for name in ("ids", "targets", "documents"))
    together = token_nats(model, ids, targets, numbers).sum()
    alone = torch.zeros(())
    for row in (rows.row(0, place) for place in range(rows.rows)):
        for start, size in row:
            stream = np.concatenate([[END], *texts])
            piece = torch.from_numpy(stream[start : start + size + 1])[None]
            alone += token_nats(model, piece[:, :-1], piece[:, 1:]).sum()
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_ramp_takes_up_where_the_smaller_batches_end() -> None:
    batches = PretrainBatches(mixture(), 8, 2, ramp=((3, 2), (2, 4)))
    spans = [batch_span(batches.ramp, batches.rows, step) for step in range(8)]
    assert [rows for _, rows in spans] == [2, 2, 2, 4, 4, 8, 8, 8]
    assert [start for start, _ in spans] == np.cumsum([0, 2, 2, 2, 4, 4, 8, 8]).tolist()
    rows = torch.cat([micro["targets"] for step in range(7) for micro in batches(step)]).numpy()
    assert np.array_equal(rows, mixture().samples(0, 30)["targets"])


def test_reading_ahead_changes_nothing() -> None:
    asked = []

    def batches(step: int) -> list[dict[str, torch.Tensor]]:
        asked.append(step)
        return [{"ids": torch.tensor(step)}]

    ahead = Ahead(batches)
    assert [ahead(step)[0]["ids"].item() for step in (0, 1, 2, 7, 8)] == [0, 1, 2, 7, 8]
    ahead.pool.shutdown()
    assert asked == [0, 1, 2, 3, 7, 8, 9]  # each once, and one that nobody wanted


def test_shards_map_their_index_and_damage_is_seen(tmp_path: Path) -> None:
    texts = documents(7, 50)
    write_shard(tmp_path / "train-a", [text.tolist() for text in texts], 60_000)
    shard = Shard(tmp_path / "train-a")
    assert isinstance(shard.begins, np.memmap)
    assert (shard.begins // 2).tolist() == np.cumsum([0, *map(len, texts[:-1])]).tolist()
    mapped = Packer(shard.begins, len(shard.tokens), CONTEXT, 1, unit=2)
    plain = packer(texts)
    assert [mapped.row(1, n) for n in range(mapped.rows)] == [plain.row(1, n) for n in range(plain.rows)]
    index = tmp_path / "train-a.idx"
    index.write_bytes(index.read_bytes()[:300])
    with pytest.raises(OpenmaiError, match=r"300 bytes, too few for its 50 documents: damaged"):
        Shard(tmp_path / "train-a")


class MadeConfig(Config):
    """Says nothing."""


def test_the_command_line_needs_a_depth_and_nothing_else(tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture) -> None:
    """Steps, batch and rates come from the law, and a line says so; the ramp's batches are smaller, and counted as such."""
    tokenizer, shards = tmp_path / "tokenizer", tmp_path / "shards"
    with create(tokenizer, kind="tokenizer", version=1, config=MadeConfig()) as work:
        for file in tiny_tokenizer.iterdir():
            (tokenizer / file.name).write_bytes(file.read_bytes())
        work.finish({})
    loaded = Tokenizer.load(tokenizer)
    texts = [[*(text % 300 + 5).tolist()[:-1], loaded.end_of_text] for text in documents(8, 300)]
    counts: dict = {}
    with create(shards, kind="shards", version=1, config=MadeConfig()) as work:
        for split, part in (("train", texts[20:]), ("val", texts[:20])):
            _, tokens = write_shard(shards / f"{split}-tiny", part, loaded.vocab_size)
            counts[split] = {"tiny": {"documents": len(part), "tokens": tokens, "bytes": 3 * tokens}}
        _, tokens = write_shard(shards / "train-note", texts[:1], loaded.vocab_size)  # less than one row
        counts["train"]["note"] = {"documents": 1, "tokens": tokens, "bytes": 3 * tokens}
        work.finish({"vocab_size": loaded.vocab_size, "fingerprint": loaded.fingerprint, "splits": counts})
    command = ["train", "pretrain", f"--shards={shards}", f"--tokenizer={tokenizer}", f"--out={tmp_path / 'model'}", "--depth=1"]
    command += ["--context=32", "--tokens_per_parameter=8", "--loop.threads=1", "--family=speed", "--schedule.batch_ramp=[0.5]"]
    command += ['--model={"width": 16, "num_heads": 1, "ffn_width": 32}']
    assert main(command) == 0
    said = capsys.readouterr()
    found = re.search(r"dial \(nanochat\): 1 layers x 16, (\d+) steps of (\d+) x 32 tokens, rates 0\.00", said.out + said.err)
    assert found
    steps, rows = int(found[1]), int(found[2])
    artifact = Artifact.load(tmp_path / "model")
    halves = round(0.3 * steps)
    windows, packed = (Mixture.open(Artifact.load(shards), 32, {"tiny": 2.0}, 0, how) for how in ("none", "best-fit"))
    assert (windows.names, packed.names) == (["tiny"], ["tiny", "note"])
    assert packed.weights.tolist() == [2 * packed.packers[0].rows, 1]
    assert steps > 2
    assert artifact.metrics["tokens"] == (halves * rows // 2 + (steps - halves) * rows) * 32
    events = list(read_events(tmp_path / "model" / "events.jsonl", "train"))
    assert [event["tokens"] // 32 for event in events] == [rows // 2] * halves + [rows] * (steps - halves)
