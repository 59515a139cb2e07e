"""Configuration of `model import`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from openmai.base.config import Config


class ImportConfig(Config):
    """Make a checkpoint from a Hugging Face folder."""

    folder: Path
    "folder with config.json, *.safetensors and, if it is to be talked to, tokenizer.json"
    out: Path
    "folder of the checkpoint artifact"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    "precision of the weights on disk; keep: each tensor's own (FP8 and MXFP4 become bfloat16)"
