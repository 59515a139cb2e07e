"""`model import`: a checkpoint of openmai from a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json, write_json
from openmai.base.progress import say
from openmai.model.checkpoint import KIND
from openmai.model.count import count_parameters
from openmai.model.hf.convert import has_predictors, import_weights
from openmai.model.hf.family import find
from openmai.model.hf.files import Folder
from openmai.model.import_config import ImportConfig

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json")


def import_hf(config: ImportConfig) -> Artifact:
    """Read config.json, weights and tokenizer of a Hugging Face folder into a checkpoint artifact, in its own precision by default.

    Raises OpenmaiError for an unknown architecture, a setting that we do not compute, and weights that do not fit config.json.
    """
    where = config.folder / "config.json"
    if not where.is_file():
        raise OpenmaiError(f"{where}: no such file; expected a Hugging Face model folder with config.json and *.safetensors")
    inputs = [where, *sorted(config.folder.glob("*.safetensors"))]
    with create(config.out, kind=KIND, version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        settings = read_json(where)
        family = find(settings, str(where))
        model = family.read(settings.get("text_config", settings), str(where))
        folder = Folder(config.folder)
        dtype = None if config.dtype == "keep" else getattr(torch, config.dtype)
        total = import_weights(folder, family, model, work.path / "model.safetensors", dtype)
        write_json(work.path / "model.json", model.model_dump(mode="json"))
        kept = copy_tokenizer(config.folder, work.path / "tokenizer")
        _keep_token_ids(settings, work.path / "tokenizer" / "generation_config.json")
        if not kept:
            say(f"{config.folder}: no tokenizer.json; the checkpoint can be planned, loaded and exported, but not talked to")
        if has_predictors(folder, family, model):
            say(f"{config.folder}: its modules of multi-token prediction are left out")
        parameters = count_parameters(model).total
        say(f"{config.out}: {family.hf_class}, {parameters:,} parameters, {total / 1e6:,.1f} MB")
        return work.finish({"class": family.hf_class, "parameters": parameters, "weight_bytes": total})


def _keep_token_ids(settings: dict[str, Any], file: Path) -> None:
    """Note in generation_config.json which tokens begin, end and fill texts, where only config.json says so."""
    noted = read_json(file) if file.exists() else {}
    write_json(file, {name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")} | noted)


def copy_tokenizer(source: Path, out: Path) -> bool:
    """Copy the tokenizer's files that are there; tell whether there is a tokenizer at all."""
    out.mkdir(exist_ok=True)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return (out / "tokenizer.json").is_file()
