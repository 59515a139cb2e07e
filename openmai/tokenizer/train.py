"""`tokenizer train`: a byte-level BPE vocabulary in the Hugging Face format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.base.progress import say
from openmai.data.document import count_bytes, iter_texts
from openmai.tokenizer.config import TrainConfig
from openmai.tokenizer.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, Tokenizer

# The split of Qwen2's tokenizer, known to llama.cpp as "qwen2": contractions, words with a leading space, single digits,
# punctuation, newlines.
PRE_TOKENIZER = "qwen2"
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train(config: TrainConfig) -> Artifact:
    """Learn the vocabulary and write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    documents = [Artifact.load(path, "documents") for path in config.documents]
    with create(config.out, kind="tokenizer", version=1, config=config, inputs=documents) as work:
        if work.finished:
            return work.finished
        total = sum(count_bytes(document) for document in documents)
        if not total:
            raise OpenmaiError(f"{config.documents[0]}: no text to learn a tokenizer from")
        share = min(1.0, config.max_megabytes * 1e6 / total)
        say(f"learning {config.vocab_size:,} tokens from {share * total / 1e6:.1f} MB of text")
        backend = learn(_sample(documents, share), config.vocab_size)
        save(backend, work.path)
        tokenizer = Tokenizer.load(work.path)
        if tokenizer.vocab_size < config.vocab_size:
            raise OpenmaiError(
                f"vocab_size={config.vocab_size}: the text supports only {tokenizer.vocab_size} tokens; lower it or add text"
            )
        sample = "\n".join(text for text, _ in zip(_sample(documents, share), range(2000), strict=False))
        compression = len(sample.encode()) / len(tokenizer.encode(sample))
        others = {name: len(sample.encode()) / count_tokens(name, sample) for name in config.compare}
        say(f"tokenizer: {tokenizer.vocab_size:,} tokens, {compression:.2f} bytes per token")
        return work.finish(
            {"vocab_size": tokenizer.vocab_size, "bytes_per_token": compression, "learned_from_bytes": int(share * total), "others": others}
        )


def learn(texts: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train byte-level BPE on `texts`; special tokens take the first ids."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
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


def count_tokens(name: str, text: str) -> int:
    """Count the tokens of `text` in one of OpenAI's vocabularies; raises OpenmaiError when it is not at hand."""
    try:
        import tiktoken

        return len(tiktoken.get_encoding(name).encode(text, disallowed_special=()))
    except ImportError:
        raise OpenmaiError("compare: needs the package tiktoken; pip install 'openmai[interop]', or leave compare empty") from None
    except (ValueError, OSError) as error:  # an unknown name; no network and not in the cache
        raise OpenmaiError(f"compare={name}: cannot be had ({error}); put it into TIKTOKEN_CACHE_DIR, or leave it out") from None


def _sample(documents: list[Artifact], share: float) -> Iterator[str]:
    """Yield about `share` of the texts, evenly spread."""
    due = 0.0
    for document in documents:
        for text in iter_texts(document):
            due += share
            if due >= 1 - 1e-9:
                due -= 1
                yield text
