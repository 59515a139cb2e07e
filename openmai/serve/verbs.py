"""Verbs of the serving stage: `openmai serve`."""

from openmai.base.verb import Verb

VERBS = {"": Verb("openmai.serve.config:ServeConfig", "openmai.serve.start:start", "OpenAI-style API and chat page")}
