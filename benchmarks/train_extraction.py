"""python benchmarks/train_extraction.py --data FOLDER --peers FOLDER [--check] [--out openmai/data/extract/blocks.csv]

Learns which blocks of a page are its text, and writes the trees that openmai.data.extract.model reads. Needs lightgbm beside openmai.

Pages: those that benchmarks/extraction.py counts, but only the first half of each set (`half`); of the documentation only the generators
not in HELD_OUT. Labels: the segments and texts of the gold. A page of the set "segments" has gold for a few
blocks only; the others get, with little weight, the vote of the extractors whose texts `extraction.py --save FOLDER` has kept. Some
pages come a second time without class names, or only with their content, so that the model does not rely on either.

--check learns from two thirds of these pages and counts on the third, three times, instead of writing: that is where the constants
below were chosen.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
from extraction import SETS, half, normal, score
from extraction import Page as Example
from resiliparse.parse.html import HTMLTree

from openmai.data.extract.encoding import decode
from openmai.data.extract.features import NAMES, features
from openmai.data.extract.formula import expand_formulas
from openmai.data.extract.html import _in_article
from openmai.data.extract.metadata import read_metadata
from openmai.data.extract.model import CONTEXT_NAMES, UNIT, context
from openmai.data.extract.scan import CHARS, ELEMENT, GROUPS, PARENT, SHAPE, TAG, scan
from openmai.data.extract.text import CODE, block_text

HELD_OUT = ("postgresql", "sqlite")  # generators of documentation to judge by
VOTES = {"trafilatura": 0.4, "trafilatura_fast": 0.2, "resiliparse": 0.2, "readability-lxml": 0.2}
GOLD_WEIGHT, VOTE_WEIGHT, TEXT_WEIGHT = 4.0, 3.0, 10.0  # of a block with gold; of a whole page by vote; of a whole page with its text
VARIANTS, VARIANT_WEIGHT = 0.3, 0.3  # share of the pages that come again without names or furniture, and how much those count
KEPT, SAME = 0.6, 0.5  # shares of a block's trigrams that make it part of a text; of the votes that make it content
PARAMETERS = {
    "objective": "binary",
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "min_data_in_leaf": 30,
    "lambda_l2": 5,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "seed": 1,
    "verbose": -1,
}
FIRST = {"num_leaves": 16, "max_depth": 5, "learning_rate": 0.12, "num_iterations": 80}
SECOND = {"num_leaves": 28, "max_depth": 6, "learning_rate": 0.1, "num_iterations": 120}
FOLDS = 3


@dataclass
class Learned:
    """A page with its blocks; `labels` 0 or 1 and `weights` [blocks]; `matrix` as `features` makes it."""

    kind: str
    example: Example
    texts: list[str]
    blocks: np.ndarray
    elements: np.ndarray
    in_article: np.ndarray
    matrix: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


# --- labels


def prepare(kind: str, example: Example, votes: dict[str, str]) -> Learned | None:
    """Return the page with labels, None if it has no text at all."""
    tree = HTMLTree.parse(decode(example.content, ""))
    title, html = " ".join((tree.title or "").split()), str(tree)
    page = scan(expand_formulas(html), title, 100_000)
    if not len(page.blocks):
        return None
    texts = [block_text(page, block).replace(CODE, "") for block in page.blocks]
    in_article = _in_article(page, read_metadata(html).article)
    matrix = features(page.blocks, page.elements, in_article)
    chars = page.blocks[:, CHARS]
    share = chars / chars.sum() + 0.5 / len(chars)
    if kind == "segments":
        vote = sum(VOTES[name] * stands_in(texts, text) for name, text in votes.items())
        gold = segment_labels(texts, example.gold, vote)
        labels = np.where(gold >= 0, gold, vote >= SAME).astype(int)
        weights = np.where(gold >= 0, GOLD_WEIGHT, VOTE_WEIGHT * share * np.abs(vote - SAME) * 2)
    else:
        labels, weights = stands_in(texts, example.gold).astype(int), TEXT_WEIGHT * share
    return Learned(kind, example, texts, page.blocks, page.elements, in_article, matrix, labels, weights)


def stands_in(texts: list[str], whole: str) -> np.ndarray:
    """Tell which blocks are part of the text `whole`: by trigrams of words, short ones as lines."""
    words = re.findall(r"\w+", whole)
    known, lines = set(zip(words, words[1:], words[2:], strict=False)), {normal(line) for line in whole.split("\n")}
    result = []
    for text in texts:
        words = re.findall(r"\w+", text)
        grams = list(zip(words, words[1:], words[2:], strict=False))
        result.append(sum(gram in known for gram in grams) > KEPT * len(grams) if grams else normal(text) in lines)
    return np.array(result, dtype=float)


def segment_labels(texts: list[str], gold: dict[str, list[str]], vote: np.ndarray) -> np.ndarray:
    """Return 1 for blocks that hold a wanted segment, 0 for an unwanted one, -1 for the rest. Of several places for a wanted segment
    the one that the vote prefers counts, none if that does not decide."""
    clean = [normal(text) for text in texts]
    starts, joined = np.cumsum([0, *(len(text) + 1 for text in clean[:-1])]), " ".join(clean)
    labels = np.full(len(texts), -1)
    for label, name in ((0, "without"), (1, "with")):
        for segment in map(normal, gold[name]):
            places = [match.start() for match in re.finditer(f"(?={re.escape(segment)})", joined)]
            spans = [tuple(np.searchsorted(starts, [at, at + len(segment) - 1], "right") - 1) for at in places]
            if label == 1 and len(spans) > 1:
                votes = [vote[first : last + 1].mean() for first, last in spans]
                spans = [span for span, value in zip(spans, votes, strict=True) if value == max(votes)]
                spans = spans if len(spans) == 1 else []
            for first, last in spans:
                labels[first : last + 1] = label
    return labels


# --- learning


def with_variants(pages: list[Learned]) -> list[Learned]:
    """Return the pages and, of some, copies without furniture or without class names."""
    noise, result = np.random.default_rng(0), []
    for page in pages:
        result.append(page)
        content = page.labels == 1
        if noise.random() < VARIANTS and content.sum() > 1:
            matrix = features(page.blocks[content], page.elements, page.in_article[content])
            result.append(variant(page, matrix, content, page.elements))
        if noise.random() < VARIANTS:
            elements = page.elements.copy()
            elements[:, GROUPS], elements[:, SHAPE] = 0, elements[:, TAG]
            result.append(variant(page, features(page.blocks, elements, page.in_article), np.ones(len(content), bool), elements))
    return result


def variant(page: Learned, matrix: np.ndarray, kept: np.ndarray, elements: np.ndarray) -> Learned:
    labels, weights = page.labels[kept], page.weights[kept] * VARIANT_WEIGHT
    return Learned(page.kind, page.example, [], page.blocks[kept], elements, page.in_article[kept], matrix, labels, weights)


def fit(pages: list[Learned], matrices: list[np.ndarray], parameters: dict) -> lightgbm.Booster:
    labels, weights = np.concatenate([page.labels for page in pages]), np.concatenate([page.weights for page in pages])
    return lightgbm.train(PARAMETERS | parameters, lightgbm.Dataset(np.concatenate(matrices), labels, weight=weights))


def learn(pages: list[Learned]) -> tuple[lightgbm.Booster, lightgbm.Booster]:
    """Return both ensembles; what the second sees of the first comes from ensembles that had not seen the page."""
    pages = with_variants(pages)
    matrices = [np.empty(0)] * len(pages)
    for fold in range(FOLDS):
        others = [page for page in pages if part(page, 2) != fold]
        first = fit(others, [page.matrix for page in others], FIRST)
        for number, page in enumerate(pages):
            if part(page, 2) == fold:
                matrices[number] = with_context(page, first)
    return fit(pages, [page.matrix for page in pages], FIRST), fit(pages, matrices, SECOND)


def with_context(page: Learned, first: lightgbm.Booster) -> np.ndarray:
    said = np.rint(first.predict(page.matrix, raw_score=True) * UNIT).astype(np.int64)
    around = context(said, page.blocks[:, CHARS], page.blocks[:, ELEMENT], page.elements[:, PARENT])
    return np.concatenate([page.matrix, around], axis=1)


def part(page: Learned, byte: int) -> int:
    return hashlib.sha256(page.example.name.encode()).digest()[byte] % FOLDS


# --- writing, checking


def write(path: Path, ensembles: tuple[lightgbm.Booster, ...], threshold: float) -> None:
    """Write the trees, one line per node; the first tree of the second ensemble is a leaf that moves the threshold to 0."""
    names = [*NAMES, *CONTEXT_NAMES]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["stage", "node", "feature", "threshold", "left", "right", "value"])
        rows.writerow([1, 0, "", 0, 0, 0, -round(np.log(threshold / (1 - threshold)) * UNIT)])
        for stage, ensemble in enumerate(ensembles):
            for tree in ensemble.dump_model()["tree_info"]:
                nodes: list[list] = []
                add_node(nodes, tree["tree_structure"], names)
                rows.writerows([stage, number, *node] for number, node in enumerate(nodes))


def add_node(nodes: list[list], node: dict, names: list[str]) -> int:
    number = len(nodes)
    if "leaf_value" in node:
        nodes.append(["", 0, 0, 0, round(node["leaf_value"] * UNIT)])
        return number
    nodes.append([names[node["split_feature"]], int(np.floor(node["threshold"])), 0, 0, 0])
    nodes[number][2] = add_node(nodes, node["left_child"], names)
    nodes[number][3] = add_node(nodes, node["right_child"], names)
    return number


def check(pages: list[Learned]) -> None:
    results: list[tuple[Learned, np.ndarray]] = []
    for fold in range(FOLDS):
        first, second = learn([page for page in pages if part(page, 1) != fold])
        results += [(page, second.predict(with_context(page, first))) for page in pages if part(page, 1) == fold]
        print(f"fold {fold + 1} of {FOLDS}", flush=True)
    for threshold in (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6):
        line = [f"{threshold:.2f}"]
        for kind in SETS:
            texts = {
                page.example.name: "\n".join(text for text, value in zip(page.texts, values, strict=True) if value > threshold)
                for page, values in results
                if page.kind == kind
            }
            counted = score(kind, [page.example for page, _ in results if page.kind == kind], texts) if texts else None
            line.append(f"{kind} {counted.f1:.4f} ({counted.precision:.4f} {counted.recall:.4f})" if counted else "")
        print("  ".join(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="texts that extraction.py --save has kept")
    parser.add_argument("--out", type=Path, default=Path("openmai/data/extract/blocks.csv"))
    parser.add_argument("--threshold", type=float, default=0.45)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    pages = load(options.data, options.peers)
    print(f"{len(pages)} pages, {sum(len(page.texts) for page in pages)} blocks", flush=True)
    if options.check:
        check(pages)
    else:
        write(options.out, learn(pages), options.threshold)


def load(data: Path, peers: Path) -> list[Learned]:
    votes = {name: pickle.loads((peers / f"{name}.pickle").read_bytes())["segments"] for name in VOTES}
    examples = [(kind, example) for kind in SETS for example in SETS[kind][1](data)]
    chosen = [(kind, one) for kind, one in examples if half(one.name) == 0 and not one.name.startswith(HELD_OUT)]
    said = {one.name: {name: texts[one.name][0] for name, texts in votes.items()} for kind, one in chosen if kind == "segments"}
    prepared = (prepare(kind, one, said.get(one.name, {})) for kind, one in chosen)
    return [page for page in prepared if page is not None]


if __name__ == "__main__":
    main()
