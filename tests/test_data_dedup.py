"""pytest tests/test_data_dedup.py: keys, exact, near and repeated duplicates against slow twins; the same on Daft."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openmai.base.errors import OpenmaiError
from openmai.data.dedup import cluster, spill
from openmai.data.dedup import near as near_module
from openmai.data.dedup.config import Dedup
from openmai.data.dedup.exact import Dropped, exact
from openmai.data.dedup.fingerprint import Lists, drop, fingerprint, fixed_keys, jaccard, list_keys, schema, shingle_sets, shingles
from openmai.data.dedup.near import choose, choose_many, near, preferences
from openmai.data.dedup.repeated import repeated
from openmai.data.dedup.spill import Spill

VOCABULARY = [f"word{number}" for number in range(500)]
NONE = np.zeros(0, np.int64)


def make_texts(count: int, noise: random.Random) -> list[str]:
    """Random texts, each followed by copies with more and more words replaced."""
    texts = []
    for _ in range(count):
        words = noise.choices(VOCABULARY, k=200)
        texts.append(" ".join(words))
        for replaced in (0, 1, 2, 5, 20):
            copy = list(words)
            for _ in range(replaced):
                copy[noise.randrange(len(copy))] = noise.choice(VOCABULARY)
            texts.append(" ".join(copy))
    return texts


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    size = min(n, len(words))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if words else set()


def true_jaccard(a: str, b: str) -> float:
    x, y = grams(a), grams(b)
    return len(x & y) / max(1, len(x | y))


def find_near(texts: list[str], scratch: Path, config: Dedup | None = None, earlier: int = 0, chunk: int = 10**9) -> Dropped:
    config = config or Dedup()
    found = fingerprint(texts, config)
    chunks = [found.bands[start : start + chunk] for start in range(0, len(texts), chunk)]
    takes_part = np.ones(len(texts), np.bool_)
    return near(chunks, takes_part, preferences("longest", found.words), texts_of(texts), config, scratch, earlier)


def texts_of(texts: list[str]):  # type: ignore[no-untyped-def]
    def fetch(rows: NDArray[np.int64]) -> Iterator[str]:
        assert (np.diff(rows) > 0).all()
        return (texts[row] for row in rows)

    return fetch


# --- keys of one document


def test_shingles_and_similarity_are_those_of_sets_of_words() -> None:
    texts = [*make_texts(3, random.Random(3)), "Äpfel und _x1 ΣΊΓΜΑΣ; naïve… 3.14", "äpfel UND _X1 σίγμας naïve 3 14", "one two", "", "—!"]
    together = shingle_sets(texts, 5)
    for number, a in enumerate(texts):
        assert len(shingles(a, 5)) == len(grams(a))
        assert (together.values[slice(*together.offsets[number : number + 2])] == shingles(a, 5)).all()
        for b in texts:
            assert jaccard(shingles(a, 5), shingles(b, 5)) == true_jaccard(a, b)


def test_scripts_without_spaces_have_a_word_per_character() -> None:
    assert fingerprint(["我们都是好人 abc", "ภาษา", "हिन्दी भाषा", "漢字かな\U00020000"], Dedup()).words.tolist() == [7, 4, 2, 5]


def test_exact_key_ignores_layout_and_case() -> None:
    keys = fingerprint(["Hello,  World!", "hello\nworld", "world hello", "hello worlds", "helloworld", "", "..."], Dedup()).exact
    assert (keys[0] == keys[1]).all()
    assert len({tuple(key) for key in keys.tolist()}) == 5
    assert not keys[5:].any()


@pytest.mark.parametrize("similarity", [0.3, 0.8])
def test_rows_agree_as_often_as_independent_permutations_would(similarity: float) -> None:
    """Bands of one row each: the share of equal ones estimates the similarity, without bias and with a binomial's variance."""
    noise, config, errors, variances = random.Random(4), Dedup(ngram=1, bands=128, rows=1), [], []
    for _ in range(200):
        size = noise.randrange(30, 200)
        common = round(2 * size * similarity / (1 + similarity))
        words = noise.sample(range(10**9), 2 * size - common)
        a, b = (" ".join(map(str, part)) for part in (words[:size], words[size - common :]))
        true = common / (2 * size - common)
        bands = fingerprint([a, b], config).bands
        errors.append(float((bands[0] == bands[1]).mean()) - true)
        variances.append(true * (1 - true) / 128)
    assert abs(np.mean(errors)) < 4 * np.sqrt(np.mean(variances) / 200)
    assert 0.7 < np.mean(np.square(errors)) / np.mean(variances) < 1.4


def test_columns_and_back(tmp_path: Path) -> None:
    config = Dedup(line_copies=1)
    found = fingerprint(["a b c\n\nd e f " * 10, "", "x"], config)
    table = pa.table(found.columns())
    assert table.schema.types == schema(config).types
    pq.write_table(table.slice(1), tmp_path / "keys.parquet")
    back = pq.read_table(tmp_path / "keys.parquet").combine_chunks().to_batches()[0]
    assert (fixed_keys(back["bands"]) == found.bands[1:]).all()
    assert (fixed_keys(back["exact"]) == found.exact[1:]).all()
    assert list_keys(back["lines"]).offsets.tolist() == (found.lines.offsets[1:] - found.lines.offsets[1]).tolist()
    assert (list_keys(back["lines"]).values == found.lines.values[found.lines.offsets[1] :]).all()


# --- exact


@pytest.mark.parametrize("earlier", [0, 3])
def test_exact_keeps_the_first(tmp_path: Path, earlier: int) -> None:
    texts = ["b", "a", "a", "B!", "c", "A", "", ""]
    keys = fingerprint(texts, Dedup()).exact
    takes_part = np.array([True] * 4 + [False] + [True] * 3)
    found = exact([keys[:3], keys[3:3], keys[3:]], takes_part, tmp_path, earlier)
    assert list(zip(found.rows.tolist(), found.kept.tolist(), strict=True)) == [(2, 1), (3, 0), (5, 1)][earlier // 3 :]


def test_partitions_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, config = make_texts(40, random.Random(5)), Dedup(line_copies=1, paragraph_copies=1, line_chars=1)
    texts = [text + "\n\n" + " ".join(VOCABULARY[: 20 + number % 3]) for number, text in enumerate(texts)]
    keys, takes_part = fingerprint(texts, config), np.ones(len(texts), np.bool_)
    results = []
    for rows in (1 << 20, 64):
        monkeypatch.setattr(spill, "_ROWS", rows)
        with repeated([keys.paragraphs], takes_part, 1, tmp_path) as parts:
            paragraphs = {row: numbers.tolist() for row, numbers in parts.take(len(texts)).items()}
        result = find_near(texts, tmp_path, config, chunk=rows)
        results.append(
            (exact([keys.exact], takes_part, tmp_path).rows.tolist(), *map(np.ndarray.tolist, vars(result).values()), paragraphs)
        )
    assert Spill(tmp_path, 2, 10_000).bits > 3
    assert results[0] == results[1]
    assert not list(tmp_path.iterdir())


# --- near


def test_near_duplicates_against_brute_force(tmp_path: Path) -> None:
    texts = make_texts(30, random.Random(3))
    found = find_near(texts, tmp_path)
    stays = set(range(len(texts))) - set(found.rows.tolist())
    for row, kept, similarity in zip(found.rows.tolist(), found.kept.tolist(), found.similarity.tolist(), strict=True):
        assert kept in stays
        assert similarity == true_jaccard(texts[row], texts[kept]) >= 0.8
    missed = [(a, b) for a in stays for b in stays if a < b and true_jaccard(texts[a], texts[b]) >= 0.8]
    assert len(missed) <= 0.05 * len(found.rows)


@pytest.mark.parametrize("keep", ["first", "quality", "newest"])
def test_which_one_stays(tmp_path: Path, keep: str) -> None:
    text = " ".join(random.Random(1).choices(VOCABULARY, k=300))
    texts, config = [text, text + " more", text + " more words"], Dedup()
    keys = fingerprint(texts, config)
    preference = preferences(keep, keys.words, np.array([0.1, 0.9, np.nan]), ["", "2024-05-01T10:00:00", "2024-04-30"])
    found = near([keys.bands], np.ones(3, np.bool_), preference, texts_of(texts), config, tmp_path)
    assert found.kept.tolist() == [[0, 0], [1, 1]][keep != "first"]


def test_newer_dates_are_preferred() -> None:
    dates = ["", "2023", "2023-12-31", "2024", "2024-01-02T03:04:05Z", "2024-01-03"]
    assert (np.diff(preferences("newest", np.zeros(len(dates), np.int64), dates=dates)) > 0).all()


def test_chains_do_not_join_what_is_not_alike(tmp_path: Path) -> None:
    words = random.Random(5).choices(VOCABULARY, k=1000)
    windows = [" ".join(words[start : start + 400]) for start in range(0, 600, 20)]
    found = find_near(windows, tmp_path)
    assert len(found.rows) > 10
    clusters = defaultdict(list)
    for row, kept in zip(found.rows.tolist(), found.kept.tolist(), strict=True):
        clusters[kept] += [row]
    assert len(clusters) > 3
    for kept, rows in clusters.items():
        assert min(true_jaccard(windows[a], windows[b]) for a in [kept, *rows] for b in rows) >= 0.6


def test_earlier_documents_stay_and_win(tmp_path: Path) -> None:
    text = " ".join(random.Random(6).choices(VOCABULARY, k=300))
    found = find_near([text, text + " more", text + " still more words", "other"], tmp_path, earlier=2)
    assert (found.rows.tolist(), found.kept.tolist()) == ([2], [1])


def test_many_copies_of_a_template_cost_one_comparison_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = " ".join(random.Random(7).choices(VOCABULARY, k=400))
    calls: Counter[str] = Counter()

    def counted(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
        calls["compared"] += 1
        return jaccard(a, b)

    def many(*arguments: Any) -> tuple[Dropped, int]:
        found, compared = choose_many(*arguments)
        calls["compared by compiled code"] += compared
        return found, compared

    monkeypatch.setattr(near_module, "jaccard", counted)
    monkeypatch.setattr(near_module, "choose_many", many)
    texts = [f"{template} {number}" for number in range(300)]
    found = find_near(texts, tmp_path)
    assert len(found.rows) == 299
    monkeypatch.setattr(near_module, "_BUFFER", 1)  # the slow twin
    assert_equal(find_near(texts, tmp_path), found)
    assert calls == {"compared": 299, "compared by compiled code": 299}


@settings(max_examples=300, deadline=None)
@given(
    buckets=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=8), max_size=12),
    preference=st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=12, max_size=12),
    sets=st.lists(st.sets(st.integers(0, 6)), min_size=12, max_size=12),
    least=st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    earlier=st.integers(0, 12),
    rivals=st.integers(1, 4),
)
def test_compiled_choice_against_the_slow_twin(
    buckets: list[list[int]], preference: list[float], sets: list[set[int]], least: float, earlier: int, rivals: int
) -> None:
    values = [np.array(sorted(found), np.uint64) for found in sets]
    keys = np.repeat(np.arange(len(buckets), dtype=np.uint64), [len(bucket) for bucket in buckets])
    rows = np.array([row for bucket in buckets for row in bucket], np.int64)
    calls = 0

    def counted(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
        nonlocal calls
        calls += 1
        return jaccard(a, b)

    def lists(numbers: NDArray[np.int64]) -> Lists:
        assert (np.diff(numbers) > 0).all()
        found = [values[row] for row in numbers]
        return Lists(np.concatenate([np.zeros(0, np.uint64), *found]), np.cumsum([0, *map(len, found)]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_module, "_RIVALS", rivals)
        patch.setattr(near_module, "jaccard", counted)
        slow = list(choose(keys, rows.astype(np.uint64), np.array(preference), values.__getitem__, least, earlier))
        found, compared = choose_many(keys, rows, np.array(preference), lists, least, earlier)
    assert list(zip(found.rows.tolist(), found.kept.tolist(), found.similarity.tolist(), strict=True)) == slow
    assert compared == calls


def test_components_that_do_not_fit_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, taken = make_texts(30, random.Random(9)), []
    calls: Counter[str] = Counter()

    def many(keys: Any, rows: Any, preference: Any, sets: Any, *rest: Any) -> tuple[Dropped, int]:
        taken.append(len(sets(np.unique(rows)).values))
        return choose_many(keys, rows, preference, sets, *rest)

    def slow(*arguments: Any) -> Iterator[tuple[int, int, float]]:
        calls["slow"] += 1
        return choose(*arguments)

    monkeypatch.setattr(near_module, "choose_many", many)
    monkeypatch.setattr(near_module, "choose", slow)
    expected = find_near(texts, tmp_path, earlier=20)
    assert (len(taken), calls["slow"]) == (1, 0)
    for buffer in (1100, 3000):
        taken.clear()
        monkeypatch.setattr(near_module, "_BUFFER", buffer)
        assert_equal(find_near(texts, tmp_path, earlier=20), expected)
        assert len(taken) > 3
        assert max(taken) <= buffer
        assert (calls["slow"] > 0) == (buffer == 1100)
        calls.clear()


def test_a_text_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    text = " ".join(random.Random(10).choices(VOCABULARY, k=300))
    found = fingerprint([text] * 200, Dedup())

    def fetch(rows: NDArray[np.int64]) -> Iterator[str]:
        yield from [text] * 100
        raise OpenmaiError("the texts end here")

    with pytest.raises(OpenmaiError, match="the texts end here"):
        near([found.bands], np.ones(200, np.bool_), np.zeros(200), fetch, Dedup(), tmp_path)


def test_wrong_number_of_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 rows of keys for 3 documents"):
        exact([np.ones((2, 2), np.uint64)], np.ones(3, np.bool_), tmp_path)


# --- paragraphs and lines


def slow_repeated(keys: list[list[int]], copies: int, sites: list[int] | None, earlier: int) -> dict[int, list[int]]:
    """The meaning of `repeated` in plain Python."""
    seen: Counter[tuple[int, int]] = Counter()
    result: dict[int, list[int]] = {}
    for row, found in enumerate(keys):
        before = seen.copy()
        for number, key in enumerate(found):
            place = (sites[row] if sites else 0, key)
            count = before[place] if sites else seen[place]
            if key and count >= copies and row >= earlier:
                result.setdefault(row, []).append(number)
            seen[place] = before[place] + 1 if sites else seen[place] + 1
    return result


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.lists(st.integers(0, 4), max_size=5), max_size=12),
    copies=st.integers(1, 3),
    by_site=st.booleans(),
    earlier=st.integers(0, 3),
    cut=st.integers(0, 12),
)
def test_repeated_against_the_slow_twin(
    tmp_path_factory: pytest.TempPathFactory, keys: list[list[int]], copies: int, by_site: bool, earlier: int, cut: int
) -> None:
    sites = [row % 2 for row in range(len(keys))] if by_site else None
    chunks = []
    for part in (keys[:cut], keys[cut:]):
        values = np.array([key for found in part for key in found], np.uint64)
        chunks.append(Lists(values, np.cumsum([0, *map(len, part)])))
    hosts = np.array(sites, np.uint64) if sites is not None else None
    with repeated(chunks, np.ones(len(keys), np.bool_), copies, tmp_path_factory.mktemp("spill"), earlier, hosts) as parts:
        found = parts.take(min(cut, len(keys))) | parts.take(len(keys))
    assert {row: numbers.tolist() for row, numbers in found.items()} == slow_repeated(keys, copies, sites, earlier)


def test_repeated_paragraphs_go_and_short_ones_stay(tmp_path: Path) -> None:
    boilerplate = "All rights reserved by the owners of this fine page"
    texts = [f"Returns:\n\n{boilerplate.upper() if number % 2 else boilerplate}\n\nunique text {number}" for number in range(4)]
    keys = fingerprint(texts, Dedup(paragraph_copies=2, paragraph_chars=40))
    with repeated([keys.paragraphs], np.ones(4, np.bool_), 2, tmp_path) as parts:
        gone = parts.take(4)
    assert {row: numbers.tolist() for row, numbers in gone.items()} == {2: [1], 3: [1]}
    assert drop(texts[3], gone[3], NONE) == "Returns:\n\nunique text 3"


def test_code_and_tables_are_not_torn_apart() -> None:
    code = "```\nimport numpy as np\n\nprint(numpy.arange(10), 20)\n```"
    text = f"A line of prose that is long\n\n{code}\n| a table of some words | 1 |\nanother line of prose"
    keys = fingerprint([text], Dedup(line_copies=1, paragraph_chars=1))
    assert np.flatnonzero(keys.lines.values).tolist() == [0, 8]
    assert len(keys.paragraphs.values) == 2
    assert drop(text, np.array([0]), np.array([8])) == f"{code}\n| a table of some words | 1 |"
    assert drop(text, np.array([1]), NONE) == "A line of prose that is long"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \t\n`|\x85\u2028é", max_size=60), st.data())
def test_drop_leaves_the_other_lines(text: str, data: st.DataObject) -> None:
    keys = fingerprint([text], Dedup(line_copies=1, line_chars=1, paragraph_chars=1))
    lines = text.split("\n")
    assert len(keys.lines.values) == len(lines)
    gone = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    filled = [line for number, line in enumerate(lines) if number not in gone and line.strip(" \t\r")]
    assert [line for line in drop(text, NONE, np.array(sorted(gone))).split("\n") if line.strip(" \t\r")] == filled
    assert drop(text, np.arange(len(keys.paragraphs.values)), NONE) == ""


# --- the cluster's twin


def test_daft_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("daft", reason="daft is not installed: pip install 'openmai[cluster]'")
    noise = random.Random(8)
    words = noise.choices(VOCABULARY, k=1500)
    texts = make_texts(20, noise) + [" ".join(words[start : start + 300]) for start in range(0, 900, 15)] + ["", "x", "x"]
    noise.shuffle(texts)
    config, rows = Dedup(), np.arange(len(texts))
    keys = fingerprint(texts, config)
    table = pa.table(keys.columns() | {"row": rows, "text": texts, "preference": keys.words.astype(float)})
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for number, file in enumerate(files):
        pq.write_table(table.slice(number * 70, 70), file)
    for earlier in (0, 50):
        takes_part = np.ones(len(texts), np.bool_)
        local = exact([keys.exact], takes_part, tmp_path, earlier)
        assert_equal(cluster.exact(files, earlier), local)
        takes_part[local.rows] = False
        similar = near([keys.bands], takes_part, keys.words.astype(float), texts_of(texts), config, tmp_path, earlier)
        assert len(similar.rows) > 50
        assert_equal(cluster.near(files, config, earlier, without=local.rows), similar)


def test_components_of_a_long_chain() -> None:
    daft = pytest.importorskip("daft", reason="daft is not installed: pip install 'openmai[cluster]'")
    order = np.random.default_rng(0).permutation(60)
    pairs = [(min(a, b), max(a, b)) for a, b in pairwise(order[:40])] + [(order[50], order[51])]
    edges = daft.from_pydict({"low": [int(min(pair)) for pair in pairs], "high": [int(max(pair)) for pair in pairs]})
    found = cluster._components(daft, edges).to_pydict()
    expected = {int(row): int(min(order[:40])) for row in order[:40]} | {int(row): int(min(order[50:52])) for row in order[50:52]}
    assert dict(zip(found["row"], found["root"], strict=True)) == expected


def test_without_daft_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "daft", None)
    with pytest.raises(OpenmaiError, match=r"openmai\[cluster\]"):
        cluster.exact([])


def assert_equal(a: Dropped, b: Dropped) -> None:
    for name in vars(a):
        assert (getattr(a, name) == getattr(b, name)).all()
