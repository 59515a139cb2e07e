"""OMP_NUM_THREADS=1 python -m pytest tests/test_data_mix.py

Caps and shares, epochs and budgets, the verb and its card, and the loader that draws from a mixture.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config, validate
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json, write_json
from openmai.data.document import SCHEMA, iter_rows
from openmai.data.mix import mix as mix_module
from openmai.data.mix.choose import largest_total
from openmai.data.mix.config import MixConfig
from openmai.data.mix.mix import host_of, mix
from openmai.data.mix.solve import solve
from openmai.tokenizer.config import EncodeConfig
from openmai.tokenizer.encode import encode
from openmai.train.config import LoopConfig, PretrainConfig
from openmai.train.loader import Mixture, Phase, allot, drawn
from openmai.train.mixture import MixtureFile
from openmai.train.pretrain import pretrain


class MadeConfig(Config):
    seed: int = 0


def row(number: int, source: str, size: int = 100, **other: object) -> dict:
    text = f"{source} {number} ".ljust(size, "x")[:size]
    plain = {"id": f"{source}-{number}", "text": text, "url": f"https://www.h{number % 4}.org/{number}", "source": source}
    return (
        plain | {"license": "CC0-1.0", "language": "en", "date": "2021-03-04", "scores": [("quality", number / 100)], "meta": "{}"} | other
    )


def make(folder: Path, rows: list[dict], files: int = 2) -> Path:
    with create(folder, kind="documents", version=1, config=MadeConfig()) as work:
        (folder / "documents").mkdir()
        for number in range(files):
            table = pa.Table.from_pylist(rows[number::files], schema=SCHEMA)
            pq.write_table(table, folder / "documents" / f"part-{number:05d}.parquet")
        funnel: dict = {"step": "gopher", "title": "Gopher quality", "in": 3 * len(rows), "out": len(rows), "bytes_in": 9, "bytes_out": 3}
        drops = {
            "steps": [funnel | {"dropped": {"gopher.words": len(rows), "optout.noai": len(rows)}}],
            "sources": {},
            "raw_bytes": 1,
            "damaged": [],
        }
        write_json(folder / "funnel.json", drops)
        work.finish({})
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    web = make(tmp_path / "web", [row(n, "web", license="CC-BY-4.0" if n % 5 else "CC-BY-NC-4.0") for n in range(100)])
    rest = [row(n, "books", language="en" if n % 2 else "de") for n in range(40)] + [row(n, "lessons") for n in range(10)]
    return [web, make(tmp_path / "rest", rest, files=1)]


def run(tmp_path: Path, documents: list[Path], **settings: object) -> tuple[Artifact, dict, dict]:
    config = validate(MixConfig, {"documents": documents, "out": tmp_path / "mix", **settings}, "openmai data mix")
    artifact = mix(config)
    return artifact, read_json(tmp_path / "mix" / "mixture.json"), read_json(tmp_path / "mix" / "card.json")


def sizes_of(artifact: Artifact, column: str = "source") -> dict[str, int]:
    totals: dict[str, int] = {}
    for item in iter_rows(artifact, [column, "text"]):
        totals[item[column]] = totals.get(item[column], 0) + len(item["text"])
    return totals


# Arithmetic


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])), min_size=1, max_size=6))
def test_largest_total_is_the_fixed_point_from_above(groups: list[tuple[int, float]]) -> None:
    found = largest_total([size for size, _ in groups], [share for _, share in groups])
    slow = float(sum(size for size, _ in groups))
    for _ in range(2000):
        slow = sum(min(size, share * slow) for size, share in groups)
    assert found == pytest.approx(slow, rel=1e-3, abs=0.05)


SIZES = {"web": 1000, "books": 100, "lessons": 10}


def solved(**settings: object) -> tuple[dict[str, float], float]:
    config = validate(MixConfig, {"documents": ["a"], "out": "b", **settings}, "mix")
    solution = solve(config, SIZES)
    return {name: round(value, 6) for name, value in solution.epochs(SIZES).items()}, solution.budget


def test_weights_shares_and_epochs() -> None:
    assert solved() == ({"web": 1, "books": 1, "lessons": 1}, 1110)
    assert solved(sources={"web": {"epochs": 0.5}, "books": {"epochs": 2}}) == ({"web": 0.5, "books": 2, "lessons": 0}, 700)
    assert solved(sources={"web": 3, "books": 1}) == ({"web": 1.2, "books": 4, "lessons": 0}, 1600)  # books run out first
    assert solved(sources={"web": 3, "books": 1}, max_epochs_of={"books": 2})[1] == 800
    budget = {"budget": 100, "bytes_per_token": 4}
    assert solved(sources={"web": 3, "books": 1}, **budget) == ({"web": 0.3, "books": 1, "lessons": 0}, 400)
    mixed = {"web": 1, "books": {"share": 0.25}, "lessons": {"epochs": 2}}
    assert solved(sources=mixed, **budget) == ({"web": 0.28, "books": 1, "lessons": 2}, 400)
    phases = [{"name": "a", "share": 0.75, "sources": {"web": 1}}, {"name": "b", "share": 0.25, "sources": {"books": 0.9, "lessons": 0.1}}]
    assert solved(phases=phases, **budget) == ({"web": 0.3, "books": 0.9, "lessons": 1}, 400)
    assert solved(phases=phases)[1] == pytest.approx(4 * 10 / 0.25 / 0.1)  # the lessons run out first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": {"wbe": 1}}, "no source 'wbe'.*did you mean 'web'"),
        (
            {"sources": {"web": 1, "books": 9}, "budget": 1000},
            r"'books'.*asks for 38\.7 epochs \(3\.87 kB of 100 B\).*allows 4; .*90\.00% to 9\.30%",
        ),
        ({"sources": {"web": {"share": 0.5}, "books": {"share": 0.1}}, "budget": 10}, "fill 26 B of 43 B.*give a source a weight"),
        ({"sources": {"web": {"epochs": 2}, "books": 1}, "budget": 10}, "take 2 kB of 43 B.*raise the budget"),
        ({"sources": {"web": {"epochs": 2}, "books": 1}}, "need a budget"),
        ({"sources": {"web": {"epochs": 5}}}, "5 epochs.*max_epochs_of.web"),
        ({"sources": {"web": 0}}, "all weights are 0"),
        ({"sources": {"web": {"weight": 1, "epochs": 2}}}, "exactly one of weight, share, epochs"),
        ({"sources": {"web": 1}, "phases": [{"name": "a", "share": 1, "sources": {"web": 1}}]}, "either sources or phases"),
        ({"phases": [{"name": "a", "share": 0.5, "sources": {"web": 1}}]}, "add up to 0.5"),
    ],
)
def test_what_is_impossible_is_explained(settings: dict, message: str) -> None:
    with pytest.raises(OpenmaiError, match=message):
        solved(**settings)


def test_hosts() -> None:
    assert [host_of(url) for url in ("https://WWW.Example.org:80/a", "file.txt", "", "http://[bad")] == ["example.org", "", "", ""]


# The verb


def test_everything_once_by_default(tmp_path: Path, inputs: list[Path]) -> None:
    artifact, mixture, card = run(tmp_path, inputs)
    assert sizes_of(artifact) == {"web": 10_000, "books": 4_000, "lessons": 1_000}
    assert [item["id"] for item in iter_rows(artifact, ["id"])][:2] == ["web-0", "web-2"]
    assert mixture["phases"][0]["weights"] == pytest.approx({"web": 10 / 15, "books": 4 / 15, "lessons": 1 / 15})
    assert card["left_out"] == {}
    assert card["opt_outs"] == {"optout.noai": 150}
    assert card["groups"]["year"] == [{"name": "2021", "documents": 150, "bytes": 15_000}]
    assert card["scores"]["quality"]["documents"] == 150
    for name in ("card.md", "card.html"):
        text = (tmp_path / "mix" / name).read_text()
        assert "CC-BY-NC-4.0" in text
        assert "Gopher quality" in text


def test_parts_are_chosen_by_id_and_nested(tmp_path: Path, inputs: list[Path]) -> None:
    chosen = []
    for epochs in (0.2, 0.5):
        out = tmp_path / str(epochs)
        artifact, mixture, _ = run(out, inputs, sources={"web": {"epochs": epochs}, "books": {"epochs": 3}})
        assert sizes_of(artifact) == {"web": 10_000 * epochs, "books": 4_000}
        assert mixture["sources"]["web"]["epochs"] == pytest.approx(1)
        assert mixture["sources"]["books"]["epochs"] == pytest.approx(3)
        chosen.append({item["id"] for item in iter_rows(artifact, ["id"])})
    assert chosen[0] < chosen[1]
    other, _, _ = run(tmp_path / "seed", inputs, sources={"web": {"epochs": 0.2}}, seed=1)
    assert {item["id"] for item in iter_rows(other, ["id"])} != chosen[0]


def test_caps_hold_exactly(tmp_path: Path, inputs: list[Path]) -> None:
    settings = {"languages": {"en": 0.9, "de": 0.1}, "licenses": {"CC-BY-NC-4.0": 0.05}, "domain_share": 0.3}
    artifact, _, card = run(tmp_path, inputs, **settings)
    total = sum(sizes_of(artifact).values())
    languages, licenses = sizes_of(artifact, "language"), sizes_of(artifact, "license")
    assert languages["de"] <= 0.1 * total
    assert licenses["CC-BY-NC-4.0"] <= 0.05 * total
    hosts: dict[str, int] = {}
    for item in iter_rows(artifact, ["url", "text"]):
        hosts[host_of(item["url"])] = hosts.get(host_of(item["url"]), 0) + len(item["text"])
    assert max(hosts.values()) <= 0.3 * total
    assert total > 10_000
    assert card["left_out"]["caps of language, licence and host"]["bytes"] == 15_000 - total
    with pytest.raises(OpenmaiError, match=r"host: the shares allowed.*leave nothing"):
        run(tmp_path / "few", inputs, domain_share=0.2)
    artifact, _, _ = run(tmp_path / "max", inputs, max_bytes={"web": 2_050}, languages={"en": 1})
    assert sizes_of(artifact) == {"web": 2_000, "books": 2_000, "lessons": 1_000}


def test_a_selection_makes_a_source_of_its_own(tmp_path: Path, inputs: list[Path]) -> None:
    phases = [
        {"name": "web", "share": 0.6, "sources": {"web": 3, "web-heavy": 1}},
        {"name": "heavy", "share": 0.4, "sources": {"web-heavy": 1, "lessons": {"share": 0.2}}},
    ]
    select = {"web-heavy": {"source": "web", "min_scores": {"quality": 0.8}}}
    artifact, mixture, card = run(tmp_path, inputs, phases=phases, select=select)
    assert {item["source"] for item in iter_rows(artifact, ["source", "scores"]) if dict(item["scores"])["quality"] >= 0.8} == {"web-heavy"}
    assert set(sizes_of(artifact)) == {"web", "web-heavy", "lessons"}
    assert [phase["share"] for phase in mixture["phases"]] == pytest.approx([0.6, 0.4])
    assert mixture["phases"][1]["weights"] == pytest.approx({"web-heavy": 0.8, "lessons": 0.2})
    assert max(source["epochs"] for source in mixture["sources"].values()) == pytest.approx(4, rel=1e-3)
    assert card["left_out"]["source not in the mixture"] == {"documents": 40, "bytes": 4_000}
    with pytest.raises(OpenmaiError, match=r"select\.heavy.*'wbe'.*did you mean 'web'"):
        run(tmp_path / "bad", inputs, select={"heavy": {"source": "wbe"}})


def test_a_document_of_two_inputs_is_taken_once(tmp_path: Path, inputs: list[Path]) -> None:
    again = make(tmp_path / "again", [row(n, "web") for n in range(90, 110)])
    artifact, _, card = run(tmp_path, [*inputs, again])
    assert sizes_of(artifact)["web"] == 11_000
    assert card["left_out"]["in another input already"]["documents"] == 10


def test_a_killed_mix_ends_the_same(tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"sources": {"web": 2, "books": 1}}
    whole, _, _ = run(tmp_path / "whole", inputs, **settings)

    class Killed(Exception):
        pass

    copied: list[str] = []
    copy = mix_module._copy_file

    def dies(file: Path, target: Path, *rest: object) -> None:
        if len(copied) == 2:
            raise Killed
        copied.append(target.name)
        copy(file, target, *rest)

    monkeypatch.setattr(mix_module, "_copy_file", dies)
    with pytest.raises(Killed):
        run(tmp_path / "cut", inputs, **settings)
    monkeypatch.setattr(mix_module, "_copy_file", copy)
    again, _, _ = run(tmp_path / "cut", inputs, **settings)
    assert again.digest == whole.digest


# The loader


def loader(phases: tuple[Phase, ...], sizes: tuple[int, ...] = (40, 25, 7), context: int = 16) -> Mixture:
    streams = [np.arange(context * size + 1) + 1000 * source for source, size in enumerate(sizes)]
    return Mixture([f"s{n}" for n in range(len(sizes))], streams, phases[0].weights, context, 5, phases)


PHASES = (
    Phase("a", 123, np.array([5.0, 3.0, 0.0])),
    Phase("b", 60, np.array([1.0, 0.0, 2.0])),
    Phase("c", 40, np.array([1.0, 1.0, 1.0])),
)


def test_drawn_counts_what_allot_gives() -> None:
    weights = np.array([5.0, 3.0, 0.5, 0.0])
    everything = [source for source, _ in allot(weights, 0, 600)]
    for count in (0, 1, 3, 4, 5, 50, 599):
        assert drawn(weights, count).tolist() == np.bincount(everything[:count], minlength=4).tolist()


def test_phases_change_at_the_right_sample_and_shares_hold_everywhere() -> None:
    mixture, begin = loader(PHASES), 0
    everything = mixture.allotted(0, 223)
    for phase in PHASES:
        shares = phase.weights / phase.weights.sum()
        for count in range(1, phase.samples + 1):
            seen = np.bincount([source for source, _ in everything[begin : begin + count]], minlength=3)
            assert np.abs(seen - count * shares).max() <= 1
        begin += phase.samples
    assert {source for source, _ in everything[:123]} == {0, 1}
    assert {source for source, _ in everything[123:183]} == {0, 2}
    assert mixture.allotted(223, 10) == mixture.allotted(0, 233)[223:]  # after the last phase its weights go on


def test_numbers_go_on_from_phase_to_phase_so_nothing_repeats_early() -> None:
    mixture = loader(PHASES)
    for source in range(3):
        numbers = [number for s, number in mixture.allotted(0, 223) if s == source]
        assert numbers == list(range(len(numbers)))
    windows = mixture.windows(0, 223)[:, 0]
    for source, size in enumerate((40, 25, 7)):
        starts = [start for start in windows.tolist() if 1000 * source <= start < 1000 * (source + 1)]
        for begin in range(0, len(starts) - size + 1, size):
            assert len(set(starts[begin : begin + size])) == size
    assert mixture.epochs(223) == pytest.approx(
        [sum(1 for s, _ in mixture.allotted(0, 223) if s == source) / size for source, size in enumerate((40, 25, 7))]
    )


@pytest.mark.parametrize("step", [1, 7, 64])
def test_any_resume_gives_the_same_windows(step: int) -> None:
    mixture = loader(PHASES)
    whole = mixture.windows(0, 230)
    parts = [mixture.windows(start, min(step, 230 - start)) for start in range(0, 230, step)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_without_phases_nothing_changes() -> None:
    weights = np.array([3.0, 1.0])
    plain = Mixture(["a", "b"], [np.arange(641), np.arange(641)], weights, 16, 5)
    phased = Mixture(["a", "b"], [np.arange(641), np.arange(641)], weights, 16, 5, (Phase("all", 100, weights),))
    assert plain.allotted(37, 50) == allot(weights, 37, 50)
    assert np.array_equal(plain.windows(90, 30), phased.windows(90, 30))


def test_training_follows_a_mixture(tmp_path: Path, inputs: list[Path], tiny_tokenizer: Path) -> None:
    phases = [
        {"name": "first", "share": 0.5, "sources": {"web": 3, "books": 1}},
        {"name": "second", "share": 0.5, "sources": {"lessons": 1, "books": 1}},
    ]
    run(tmp_path, inputs, phases=phases)
    with create(tmp_path / "tokenizer", kind="tokenizer", version=1, config=MadeConfig()) as work:
        for file in tiny_tokenizer.iterdir():
            (work.path / file.name).write_bytes(file.read_bytes())
        work.finish({})
    common = {"tokenizer": tmp_path / "tokenizer"}
    shards = encode(EncodeConfig(documents=[tmp_path / "mix"], out=tmp_path / "shards", validation=0.1, **common))
    recipe = MixtureFile.read(tmp_path / "mix")
    mixture = Mixture.open_phases(shards, 16, recipe, 40, 0)
    assert [phase.samples for phase in mixture.phases] == [20, 20]
    drawn_names = [[mixture.names[source] for source, _ in mixture.allotted(begin, 20)] for begin in (0, 20)]
    assert {name: drawn_names[0].count(name) for name in set(drawn_names[0])} == {"web": 15, "books": 5}
    assert {name: drawn_names[1].count(name) for name in set(drawn_names[1])} == {"lessons": 10, "books": 10}
    with pytest.raises(OpenmaiError, match=r"'books' would be seen 6\.10 times, max_epochs is 4"):
        Mixture.open_phases(shards, 16, recipe, 4000, 0)

    base = {"shards": shards.path, "depth": 1, "context": 16, "batch_rows": 4, "micro_rows": 4, "loop": {"steps": 2}, **common}
    settings = base | {"out": tmp_path / "model", "mixture": tmp_path / "mix" / "mixture.json"}
    model = {"num_heads": 2, "width": 16, "ffn_width": 16}
    artifact = pretrain(validate(PretrainConfig, settings | {"model": model}, "train pretrain"))
    assert [source["path"] for source in artifact.inputs][2] == str(tmp_path / "mix" / "mixture.json")
    with pytest.raises(OpenmaiError, match="either mixture or upsample"):
        validate(PretrainConfig, settings | {"upsample": {"web": 2}}, "train pretrain")
    values = json.loads((tmp_path / "mix" / "mixture.json").read_text())
    values["phases"][0]["weights"]["webb"] = 1.0
    (tmp_path / "typo.json").write_text(json.dumps(values))
    with pytest.raises(OpenmaiError, match=r"'webb' is not in .*did you mean 'web'"):
        Mixture.open_phases(shards, 16, MixtureFile.read(tmp_path / "typo.json"), 40, 0)
    (tmp_path / "typo.json").write_text("{}")
    with pytest.raises(OpenmaiError, match=r"not the mixture\.json"):
        MixtureFile.read(tmp_path / "typo.json")
    assert LoopConfig(steps=2).steps == 2
