"""Verbs of the inference stage: `openmai chat`."""

from openmai.base.verb import Verb

VERBS = {"": Verb("openmai.infer.config:ChatConfig", "openmai.infer.chat:chat", "talk to a model in the terminal")}
