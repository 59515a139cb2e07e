"""`tokenizer train`: a byte-level BPE vocabulary in the Hugging Face format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.base.progress import say
from openmai.tokenizer.compare import Row, load, load_all, measure, table
from openmai.tokenizer.config import TrainConfig
from openmai.tokenizer.sample import count_sources, is_validation, rates, take
from openmai.tokenizer.splits import IGNORE_MERGES, SPLITS
from openmai.tokenizer.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, Tokenizer

_MEASURED_BYTES = 4e6
_OURS = "ours"


def train(config: TrainConfig) -> Artifact:
    """Learn the vocabulary and write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    documents = [Artifact.load(path, "documents") for path in config.documents]
    with create(config.out, kind="tokenizer", version=2, config=config, inputs=documents) as work:
        if work.finished:
            return work.finished

        def is_held_out(document_id: str) -> bool:
            return is_validation(document_id, config.held_out)

        def is_learned(document_id: str) -> bool:
            return not is_held_out(document_id)

        sizes = count_sources(documents, is_learned)
        if not sum(sizes.values()):
            raise OpenmaiError(f"{config.documents[0]}: no text to learn a tokenizer from")
        rate = rates(sizes, config.weights, config.max_megabytes * 1e6)
        learned = {source: int(rate[source] * sizes[source]) for source in rate}
        said = ", ".join(f"{source} {size / 1e6:.1f}" for source, size in learned.items())
        say(f"learning {config.vocab_size:,} tokens from {sum(learned.values()) / 1e6:.1f} MB of text ({said})")
        backend = learn((text for _, _, text in take(documents, rate, is_learned)), config.vocab_size, config.split)
        save(backend, work.path)
        tokenizer = Tokenizer.load(work.path)
        if tokenizer.vocab_size < config.vocab_size:
            raise OpenmaiError(
                f"vocab_size={config.vocab_size}: the text supports only {tokenizer.vocab_size} tokens; lower it or add text"
            )
        rows = _measure(config, documents, is_held_out if config.held_out else is_learned)
        return work.finish(
            {
                "vocab_size": tokenizer.vocab_size,
                "split": config.split,
                "learned_from_bytes": sum(learned.values()),
                "learned_from": learned,
                "bytes_per_token": rows[0]["bytes_per_token"][_OURS],
                "others": {name: value for name, value in rows[0]["bytes_per_token"].items() if name != _OURS},
                "measured_on": "held-out documents" if config.held_out else "documents it learned from",
                "compression": rows,
            }
        )


def _measure(config: TrainConfig, documents: list[Artifact], keep: Callable[[str], bool]) -> list[Row]:
    """Measure the new tokenizer and those to compare with on some of the documents that `keep` accepts."""
    sizes = count_sources(documents, keep)
    if not sum(sizes.values()):
        raise OpenmaiError(f"held_out={config.held_out}: no document falls into it; raise it, or set it to 0")
    counters = {_OURS: load(str(config.out))} | load_all(config.compare)
    rows = measure(counters, take(documents, rates(sizes, {}, _MEASURED_BYTES), keep))
    say(f"bytes per token:\n{table(rows)}")
    return rows


def learn(texts: Iterator[str], vocab_size: int, split: str = "qwen2") -> tokenizers.Tokenizer:
    """Train byte-level BPE on `texts`; special tokens take the first ids."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=False, ignore_merges=split in IGNORE_MERGES))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[split]]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=2,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def save(backend: tokenizers.Tokenizer, folder: Path) -> None:
    """Write the three files that `transformers` needs to load the tokenizer."""
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
