"""Exact and near-duplicates on a cluster: what exact.py and near.py do, as Daft queries over the workers' Parquet files, equal results.

Daft runs them in this process or, after `daft.set_runner_ray(address)`, on Ray. It is the extra `openmai[cluster]`, and nothing else here
imports it. The files have the columns `row` (number of the document in canonical order), `exact`, `bands` (`Fingerprints.columns`),
`preference` and `text`; documents that do not take part are left out of them. Only the result comes to the caller.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmai.base.errors import OpenmaiError
from openmai.data.dedup.config import Dedup
from openmai.data.dedup.exact import Dropped, in_order
from openmai.data.dedup.fingerprint import shingles
from openmai.data.dedup.near import choose

Frame = Any  # daft.DataFrame


def exact(files: list[str], earlier: int = 0) -> Dropped:
    """Find the documents whose words all occurred before, as exact.exact does."""
    daft = load_daft()
    col = daft.col
    keys = daft.read_parquet(files).select("row", col("exact").get(0).alias("a"), col("exact").get(1).alias("b")).where(col("a") != 0)
    first = keys.groupby("a", "b").agg(col("row").min().alias("kept"))
    found = keys.join(first, on=["a", "b"]).where((col("row") != col("kept")) & (col("row") >= earlier)).select("row", "kept").to_pydict()
    return in_order(np.array(found["row"], np.uint64), np.array(found["kept"], np.uint64), None)


def near(files: list[str], config: Dedup, earlier: int = 0, without: NDArray[np.int64] | None = None) -> Dropped:
    """Find the near-duplicates as near.near does, among all rows but those of `without`."""
    daft = load_daft()
    col, types = daft.col, daft.DataType
    documents = daft.read_parquet(files)
    if without is not None and len(without):
        documents = documents.join(daft.from_pydict({"row": without}), on="row", how="anti")
    buckets = _buckets(documents, earlier, col).collect()
    roots = _components(
        daft, buckets.where(col("row") != col("first")).select(col("first").alias("low"), col("row").alias("high")).distinct().collect()
    )
    get_shingles = daft.func.batch(return_dtype=types.list(types.uint64()))(_shingle_lists)
    found = types.struct({"row": types.int64(), "kept": types.int64(), "similarity": types.float64()})
    get_choice = daft.func.batch(return_dtype=found)(_choose_rows)
    candidates = (
        buckets.groupby("row")
        .agg(col("key").list_agg().alias("keys"))
        .join(roots, on="row")
        .join(documents.select("row", "preference", "text"), on="row")
        .select("row", "keys", "root", "preference", get_shingles(col("text"), config.ngram).alias("shingles"))
    )
    chosen = candidates.groupby("root").map_groups(
        get_choice(col("row"), col("keys"), col("preference"), col("shingles"), config.jaccard, earlier).alias("found")
    )
    rows = [row["found"] for row in chosen.select("found").iter_rows()]
    return in_order(
        np.array([row["row"] for row in rows], np.uint64),
        np.array([row["kept"] for row in rows], np.uint64),
        np.array([row["similarity"] for row in rows]),
    )


def load_daft() -> Any:
    """Import Daft and keep it from reporting its use."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        import daft
    except ImportError:
        raise OpenmaiError("daft: not installed; pip install 'openmai[cluster]'") from None
    return daft


def _buckets(documents: Frame, earlier: int, col: Any) -> Frame:
    """Return (key, row, first) of the buckets that hold several documents, not all of them earlier ones."""
    keys = documents.select(col("row"), col("bands").alias("key")).explode("key").where(col("key") != 0)
    row = col("row")
    sizes = keys.groupby("key").agg(row.min().alias("first"), row.max().alias("last"), row.count().alias("size"))
    return keys.join(sizes.where((col("size") > 1) & (col("last") >= earlier)), on="key").select("key", "row", "first")


def _components(daft: Any, edges: Frame) -> Frame:
    """Return (row, root): the smallest row that each row is connected with.

    Large-star and small-star in turn until all edges are stars: Kiveris et al. 2014, "Connected Components in MapReduce and Beyond".
    """
    col, smaller = daft.col, daft.functions.columns_min
    while not _are_stars(edges, col):
        both = edges.concat(edges.select(col("high").alias("low"), col("low").alias("high")))
        least = both.groupby("low").agg(col("high").min().alias("least")).with_column("least", smaller(col("low"), col("least")))
        edges = (
            both.where(col("high") > col("low"))
            .join(least, on="low")
            .select(col("least").alias("low"), col("high").alias("high"))
            .distinct()
        )
        least = edges.groupby("high").agg(col("low").min().alias("least"))
        lower = edges.join(least, on="high").where(col("low") != col("least")).select(col("least").alias("low"), col("low").alias("high"))
        edges = lower.concat(least.select(col("least").alias("low"), col("high").alias("high"))).distinct().collect()
    return edges.select(col("high").alias("row"), col("low").alias("root")).concat(
        edges.select(col("low").alias("row"), col("low").alias("root")).distinct()
    )


def _are_stars(edges: Frame, col: Any) -> bool:
    """Tell whether no row hangs on two others, or on one that hangs on another itself."""
    if edges.select("high").distinct().count_rows() < edges.count_rows():
        return False
    return edges.join(edges.select(col("high").alias("low")), on="low", how="semi").count_rows() == 0


def _shingle_lists(texts: Any, ngram: int) -> list[NDArray[np.uint64]]:
    return [shingles(text, ngram) for text in texts.to_pylist()]


def _choose_rows(rows: Any, keys: Any, preferences: Any, sets: Any, least: float, earlier: int) -> list[dict[str, Any]]:
    """Apply near.choose to the rows of one component."""
    numbers, lists = rows.to_pylist(), keys.to_pylist()
    values = dict(zip(numbers, (np.array(found, np.uint64) for found in sets.to_pylist()), strict=True))
    flat = np.array([key for found in lists for key in found], np.uint64)
    owners = np.repeat(np.array(numbers, np.uint64), [len(found) for found in lists])
    preference = dict(zip(numbers, preferences.to_pylist(), strict=True))
    found = choose(flat, owners, preference, values.__getitem__, least, earlier)
    return [{"row": row, "kept": kept, "similarity": similarity} for row, kept, similarity in found]
