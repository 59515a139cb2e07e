"""Configuration of the export stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from openmai.base.config import Config


class HFConfig(Config):
    """Write a checkpoint as a Hugging Face folder."""

    checkpoint: Path
    "checkpoint artifact"
    out: Path
    "folder of the hf artifact"


class GGUFConfig(Config):
    """Write a checkpoint as a GGUF file for llama.cpp."""

    checkpoint: Path
    "checkpoint artifact"
    out: Path
    "folder of the gguf artifact; the file is model-<quantize>.gguf"
    quantize: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "q8_0"
    "type of the matrices; norms, biases and routers stay f32, with q4_0 the embedding and the output matrix are q8_0"
