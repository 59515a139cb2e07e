"""`eval run`: everything we measure of one checkpoint, beside what an untrained model, simpler models and chance give."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json, write_json
from openmai.base.progress import Progress, say
from openmai.eval.config import EvalConfig
from openmai.eval.multiple_choice import answer_questions
from openmai.eval.ngram import bigram_nats, unigram_nats
from openmai.infer.config import Sampling
from openmai.infer.engine import Engine
from openmai.model.checkpoint import KIND, load_model
from openmai.model.loss import stream_nats
from openmai.model.transformer import Transformer
from openmai.tokenizer.shards import Shard
from openmai.tokenizer.tokenizer import Tokenizer


def evaluate(config: EvalConfig) -> Artifact:
    """Measure a checkpoint and write `results.json`: models -> figures, samples."""
    checkpoint = Artifact.load(config.checkpoint, KIND)
    shards = Artifact.load(config.shards, "shards") if config.shards else None
    inputs: list[Artifact | Path] = [checkpoint, *([shards] if shards else []), *config.questions.values()]
    with create(config.out, kind="eval", version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        if config.threads:
            torch.set_num_threads(config.threads)
        tokenizer, model = Tokenizer.load(checkpoint.path / "tokenizer"), load_model(checkpoint)
        if shards and shards.metrics["fingerprint"] != tokenizer.fingerprint:
            raise OpenmaiError(f"{config.shards}: encoded with another tokenizer than {config.checkpoint} uses; encode again")
        models = {"trained": model}
        if config.untrained:
            models["untrained"] = Transformer(model.config).eval()
            models["untrained"].initialize(config.seed)
        results: dict = {}
        (work.path / "partial").mkdir(exist_ok=True)
        for name, candidate in models.items():
            partial = work.path / "partial" / f"{name}.json"
            if not partial.exists():
                write_json(partial, _measure(candidate, tokenizer, shards, config, name))
            results[name] = read_json(partial)
        baselines = _baselines(shards, tokenizer) if shards else {}
        samples = _samples(model, tokenizer, config)
        write_json(work.path / "results.json", {"models": results, "baselines": baselines, "samples": samples})
        metrics = {
            "bpb": results["trained"]["bpb"].get("all"),
            **{name: row["accuracy"] for name, row in results["trained"]["questions"].items()},
        }
        say(table(results, baselines))
        return work.finish(metrics, scratch=["partial"])


def _measure(model: Transformer, tokenizer: Tokenizer, shards: Artifact | None, config: EvalConfig, label: str) -> dict:
    bpb = _bits_per_byte(model, tokenizer, shards, label) if shards else {}
    questions = {name: answer_questions(model, tokenizer, folder, config.shots, label) for name, folder in config.questions.items()}
    return {"bpb": bpb, "questions": questions}


def _bits_per_byte(model: Transformer, tokenizer: Tokenizer, shards: Artifact, label: str) -> dict[str, float]:
    """Return bits per byte of the validation split by source, and over `all`."""
    counts = {name: count for name, count in shards.metrics["splits"]["val"].items() if count["bytes"]}
    nats = {}
    with Progress(label, sum(count["bytes"] for count in counts.values()) / 1e6, "MB") as progress:
        for name, count in counts.items():
            tokens = Shard(shards.path / f"val-{name}").tokens
            nats[name] = stream_nats(model, tokens, model.config.context, tokenizer.end_of_text)
            progress.advance(count["bytes"] / 1e6)
    return _per_byte(nats, {name: count["bytes"] for name, count in counts.items()})


def _baselines(shards: Artifact, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """Return bits per byte of unigram and bigram models that learned from the whole training split."""
    splits = shards.metrics["splits"]
    train = np.concatenate([Shard(shards.path / f"train-{name}").tokens for name, count in splits["train"].items() if count["tokens"]])
    names = [name for name, count in splits["val"].items() if count["bytes"]]
    sizes = {name: splits["val"][name]["bytes"] for name in names}
    results = {}
    for label, model in (("unigram", unigram_nats), ("bigram", bigram_nats)):
        nats = {
            name: model(train, Shard(shards.path / f"val-{name}").tokens, tokenizer.vocab_size, tokenizer.end_of_text) for name in names
        }
        results[label] = _per_byte(nats, sizes)
    return results


def _per_byte(nats: dict[str, float], sizes: dict[str, int]) -> dict[str, float]:
    by_source = {name: value / math.log(2) / sizes[name] for name, value in nats.items()}
    return {**by_source, "all": sum(nats.values()) / math.log(2) / sum(sizes.values())} if nats else {}


def _samples(model: Transformer, tokenizer: Tokenizer, config: EvalConfig) -> dict[str, list[dict[str, str]]]:
    """Continue the configured texts and answer the configured questions, greedily."""
    sampling = Sampling(temperature=0.0, max_tokens=config.max_tokens, seed=config.seed)
    with Engine(model, tokenizer) as engine:
        continued = engine.generate([tokenizer.encode(text) for text in config.completions], sampling)
        prompts = [tokenizer.render([{"role": "user", "content": text}], reply=True)[0] for text in config.chats]
        answered = engine.generate(prompts, sampling)
    return {
        "completions": [{"prompt": text, "text": made.text} for text, made in zip(config.completions, continued, strict=True)],
        "chats": [{"prompt": text, "text": made.text} for text, made in zip(config.chats, answered, strict=True)],
    }


def table(results: dict, baselines: dict) -> str:
    """Format the results for the terminal."""
    lines = []
    for name, row in [*((name, row["bpb"]) for name, row in results.items()), *baselines.items()]:
        if row:
            lines.append(
                f"  {name:<10} {row['all']:.4f} bits per byte   " + "  ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "all")
            )
    for name, row in results.items():
        for task, score in row["questions"].items():
            right = f"{score['accuracy']:.1%} ± {score['stderr']:.1%} of {score['n']} {task} questions"
            lines.append(f"  {name:<10} {right} (chance {score['chance']:.0%}, {score['protocol']})")
    return "\n".join(lines)
