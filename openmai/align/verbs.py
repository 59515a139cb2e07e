"""Verbs of alignment."""

from openmai.base.verb import Verb

VERBS = {
    "sft": Verb("openmai.align.config:SFTConfig", "openmai.align.sft:sft", "fine-tune on conversations"),
    "dpo": Verb("openmai.align.config:DPOConfig", "openmai.align.dpo:dpo", "learn from preference pairs"),
}
