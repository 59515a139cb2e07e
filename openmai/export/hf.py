"""`export hf`: a folder that `transformers`, vLLM and SGLang load; `transformers` itself is not needed to write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json, write_json
from openmai.base.progress import say
from openmai.export.config import HFConfig
from openmai.model.checkpoint import KIND as CHECKPOINT
from openmai.model.checkpoint import load_config
from openmai.model.config import ModelConfig
from openmai.model.hf.convert import export_weights
from openmai.model.hf.family import choose
from openmai.model.hf.files import Folder
from openmai.model.import_hf import copy_tokenizer
from openmai.tokenizer.tokenizer import Tokenizer


def hf(config: HFConfig) -> Artifact:
    """Write config.json, generation_config.json, weights and tokenizer of a checkpoint in Hugging Face's layout."""
    checkpoint = Artifact.load(config.checkpoint, CHECKPOINT)
    with create(config.out, kind="hf", version=2, config=config, inputs=[checkpoint]) as work:
        if work.finished:
            return work.finished
        model = load_config(checkpoint.path)
        family = choose(model)
        if model.num_predict:
            say(f"{config.checkpoint}: its modules that predict further ahead stay behind; they only serve training")
        weights = Folder(checkpoint.path)
        dtype = str(weights.dtype("embedding.weight")).removeprefix("torch.")
        settings = {**family.write(model), "dtype": dtype, "torch_dtype": dtype}
        copy_tokenizer(checkpoint.path / "tokenizer", work.path)
        generation = work.path / "generation_config.json"
        if not generation.exists():
            write_json(generation, how_to_stop(load_tokenizer(checkpoint.path, model)))
        ids = read_json(generation)
        ends = ids.get("eos_token_id")
        settings |= {name: ids.get(name) for name in ("bos_token_id", "pad_token_id")}
        write_json(work.path / "config.json", settings | {"eos_token_id": ends[0] if isinstance(ends, list) else ends})
        total = export_weights(weights, family, model, work.path)
        say(f"{config.out}: {family.hf_class}, {total / 1e6:,.1f} MB of weights in {dtype}")
        return work.finish({"class": family.hf_class, "dtype": dtype, "weight_bytes": total})


def how_to_stop(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return generation_config.json for a tokenizer of ours: both ends of a text, and no sampling."""
    stops = [tokenizer.end_of_turn, tokenizer.end_of_text]
    return {"bos_token_id": None, "eos_token_id": stops, "pad_token_id": tokenizer.end_of_text, "do_sample": False}


def load_tokenizer(checkpoint: Path, model: ModelConfig) -> Tokenizer:
    """Read the checkpoint's tokenizer; raise OpenmaiError if the embedding has too few rows for it."""
    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    if tokenizer.vocab_size > model.vocab_size:
        found = f"{tokenizer.vocab_size} tokens but vocab_size={model.vocab_size}"
        raise OpenmaiError(f"{checkpoint}: {found}; the tokenizer belongs to another model")
    return tokenizer
