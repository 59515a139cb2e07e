"""How a text is cut into pieces before merges are applied: the splits that llama.cpp knows, so that every tokenizer can become GGUF.

An unknown split is read wrongly there without an error. The expressions are written as llama.cpp works them out, not as the models' own
files have them: it knows upper and lower case of A to Z only, and no case in contractions beyond ASCII.
"""

from __future__ import annotations

import json

import tokenizers

_CONTRACTION = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_WORDS = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = "|".join(rf"[^\r\n\p{{L}}\p{{N}}]?{letters}(?:{_CONTRACTION})?" for letters in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_PUNCTUATED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _LINES

# Name in llama.cpp (`tokenizer.ggml.pre`) -> expressions, each applied to the pieces of the one before.
SPLITS: dict[str, tuple[str, ...]] = {
    "qwen2": (rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_LINES}",),
    "llama-bpe": (rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES}",),
    "gpt-4o": (rf"{_CASED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}",),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _PUNCTUATED),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
}
IGNORE_MERGES = ("llama-bpe",)  # llama.cpp takes a piece that is a token as it is, though merges might lead elsewhere


def patterns_of(backend: tokenizers.Tokenizer) -> tuple[str, ...] | None:
    """Return the expressions of a tokenizer whose pre-tokenizer is such a list followed by the byte alphabet, else None."""
    parts = (json.loads(backend.to_str())["pre_tokenizer"] or {}).get("pretokenizers", [])
    *splits, last = parts or [{}]
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if not splits or any(last.get(key) != value for key, value in plain.items()):
        return None
    isolated = all(part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"] for part in splits)
    patterns = tuple(part["pattern"].get("Regex", "") for part in splits) if isolated else ()
    return patterns if all(patterns) and patterns else None


def name_of(backend: tokenizers.Tokenizer) -> str | None:
    """Return llama.cpp's name of a tokenizer's split, None if it has none."""
    patterns = patterns_of(backend)
    return next((name for name, known in SPLITS.items() if known == patterns), None)
