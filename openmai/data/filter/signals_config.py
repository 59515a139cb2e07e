"""Configuration of the signals of a page: its private data, its address."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from openmai.base.config import Config

Kind = Literal["key", "email", "iban", "card", "ssn", "ip", "phone"]


class Pii(Config):
    """Which private data is replaced by a placeholder such as <EMAIL>."""

    kinds: list[Kind] = ["key", "email", "iban", "card", "ssn", "ip", "phone"]
    """what to mask: key (cloud keys, tokens, private keys), email, iban, card (payment cards), ssn (US), ip (public addresses), phone;
    empty masks nothing"""


class UrlRules(Config):
    """Which addresses are dropped before their page is looked at."""

    block: list[Path] = []
    """list files of domains, domain/path prefixes, hosts-file lines or /regular expressions/; plain or .gz"""
    allow: list[Path] = []
    """list files of the same kind: if there is one, only addresses on it stay"""
    adult_words: bool = True
    """drop addresses with words that only adult pages use"""
    adult_soft_words: int = Field(default=2, ge=1)
    """how many different words that other pages use too count as adult"""
