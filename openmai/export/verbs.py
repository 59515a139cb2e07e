"""Verbs of the export stage."""

from openmai.base.verb import Verb

VERBS = {
    "hf": Verb("openmai.export.config:HFConfig", "openmai.export.hf:hf", "write a Hugging Face folder (transformers, vLLM, SGLang)"),
    "gguf": Verb("openmai.export.config:GGUFConfig", "openmai.export.llamacpp:gguf", "write a GGUF file (llama.cpp and what builds on it)"),
}
