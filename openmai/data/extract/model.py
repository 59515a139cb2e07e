"""The block classifier: two ensembles of decision trees, the second of which also sees what the first says of the neighbourhood.

Trees and sums are in whole numbers, so the verdict is the same on every machine. `blocks.csv` holds them, one line per node; it was
learned by benchmarks/train_extraction.py (gradient boosting, Friedman 2001; stacking as in Cohen and Carvalho 2005, "Stacked sequential
learning").
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numba import njit

from openmai.data.extract.features import NAMES
from openmai.data.extract.scan import CHARS, ELEMENT, PARENT, Scanned

FILE = Path(__file__).with_name("blocks.csv")
UNIT = 1000  # leaves are log-odds in thousandths
THRESHOLD = 0  # log-odds above which a block is content, in the same unit; shifted in the file by the trainer
_STEPS = np.array([-3, -2, -1, 1, 2, 3])
_WINDOW = 6
_MAX = 2**31 - 1
_LEVELS = 7
CONTEXT_NAMES = (
    ["says"]
    + [f"says@{step}" for step in _STEPS]
    + ["says_around"]
    + [f"says^{level}" for level in range(_LEVELS)]
    + ["content_before", "since_content", "content_of_page", "says_of_page", "until_content", "content_gap", "chars_since", "chars_until"]
)


@dataclass(frozen=True)
class Trees:
    """An ensemble: `nodes` int32 [nodes, 4] (feature, threshold, left child, value) and `roots` int32 [trees, 2] (node, depth).

    The right child stands after the left one, and a leaf is its own child, so that the way down is the same number of steps for every
    block, with no branch that a processor could guess wrongly.
    """

    nodes: np.ndarray
    roots: np.ndarray


def is_content(page: Scanned, matrix: np.ndarray) -> np.ndarray:
    """Return bool [blocks]: which blocks are main text; `matrix` holds their features."""
    first, second = load(FILE)
    said = score(matrix, first)
    around = context(said, page.blocks[:, CHARS], page.blocks[:, ELEMENT], page.elements[:, PARENT])
    return score(np.concatenate([matrix, around], axis=1), second) > THRESHOLD


def score(matrix: np.ndarray, trees: Trees) -> np.ndarray:
    """Return int64 [blocks]: the log-odds, in thousandths, that a block is content."""
    return _score(np.ascontiguousarray(matrix.T), trees.nodes, trees.roots)


@cache
def load(path: Path) -> tuple[Trees, Trees]:
    """Read both ensembles."""
    names = {name: number for number, name in enumerate([*NAMES, *CONTEXT_NAMES])}
    trees: list[list[list[dict[str, str]]]] = [[], []]
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            ensemble = trees[int(row["stage"])]
            if row["node"] == "0":
                ensemble.append([])
            ensemble[-1].append(row)
    first, second = (_lay_out(ensemble, names) for ensemble in trees)
    return first, second


def _lay_out(trees: list[list[dict[str, str]]], names: dict[str, int]) -> Trees:
    nodes: list[list[int]] = []
    roots: list[list[int]] = []
    for tree in trees:
        roots.append([len(nodes), 0])
        order = [(0, 0)]  # nodes and their depths breadth first: children next to each other
        for number, depth in order:
            row, inner = tree[number], bool(tree[number]["feature"])
            child = roots[-1][0] + len(order) if inner else len(nodes)
            if inner:
                order += [(int(row["left"]), depth + 1), (int(row["right"]), depth + 1)]
            nodes.append([names[row["feature"]] if inner else 0, int(row["threshold"]) if inner else _MAX, child, int(row["value"])])
        roots[-1][1] = order[-1][1]
    return Trees(np.array(nodes, dtype=np.int32), np.array(roots, dtype=np.int32))


@njit(cache=True)
def _score(columns: np.ndarray, nodes: np.ndarray, roots: np.ndarray) -> np.ndarray:
    result = np.zeros(columns.shape[1], np.int64)
    for tree in range(len(roots)):  # a tree and the features it asks for fit into the fastest cache
        for i in range(columns.shape[1]):
            node = roots[tree, 0]
            for _ in range(roots[tree, 1]):
                node = nodes[node, 2] + (columns[nodes[node, 0], i] > nodes[node, 1])
            result[i] += nodes[node, 3]
    return result


def context(said: np.ndarray, chars: np.ndarray, element: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Return int32 [blocks, len(CONTEXT_NAMES)]: what the first ensemble `said` of a block, its neighbours and the elements above."""
    sure = np.clip(500 + said // 8, 0, 1000)  # of 1000, straight between -4 and 4
    return _context(sure, chars.copy(), element.copy(), parent.copy(), _STEPS)


@njit(cache=True)
def _context(sure: np.ndarray, chars: np.ndarray, element: np.ndarray, parent: np.ndarray, steps: np.ndarray) -> np.ndarray:
    count = len(sure)
    result = np.zeros((count, 9 + len(steps) + _LEVELS + 1), np.int32)
    weighted, weight = np.zeros(len(parent), np.int64), np.zeros(len(parent), np.int64)
    content = 0
    for i in range(count):
        weighted[element[i]] += chars[i] * sure[i]
        weight[element[i]] += chars[i]
        content += chars[i] if sure[i] > 500 else 0
    for e in range(len(parent) - 1, 0, -1):
        weighted[parent[e]] += weighted[e]
        weight[parent[e]] += weight[e]
    before, last, gap = 0, -1, 0
    for i in range(count):
        row = result[i]
        row[0] = sure[i]
        for k in range(len(steps)):
            j = i + steps[k]
            row[1 + k] = sure[j] if 0 <= j < count else -1
        at = 1 + len(steps)
        near, total = 0, 0
        for j in range(max(0, i - _WINDOW), min(count, i + _WINDOW + 1)):
            near += sure[j] * chars[j]
            total += chars[j]
        row[at] = near // max(1, total)
        e = element[i]
        for level in range(_LEVELS):
            row[at + 1 + level] = weighted[e] // max(1, weight[e])
            e = parent[e]
        at += 1 + _LEVELS
        row[at], row[at + 1], row[at + 2] = before * 100 // max(1, content), i - last if last >= 0 else 999, content
        row[at + 3], row[at + 6] = weighted[0] // max(1, weight[0]), gap
        gap += chars[i]
        if sure[i] > 500:
            before += chars[i]
            last, gap = i, 0
    following, gap = -1, 0
    for i in range(count - 1, -1, -1):
        row, at = result[i], 2 + len(steps) + _LEVELS
        row[at + 4] = following - i if following >= 0 else 999
        row[at + 5], row[at + 7] = row[at + 1] + row[at + 4], gap
        gap += chars[i]
        if sure[i] > 500:
            following, gap = i, 0
    return result
