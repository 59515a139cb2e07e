"""Verbs of evaluation."""

from openmai.base.verb import Verb

VERBS = {"run": Verb("openmai.eval.config:EvalConfig", "openmai.eval.evaluate:evaluate", "bits per byte, MMLU-style questions, samples")}
