"""Verbs of the serving stage: `openmai serve`."""

from openmai.base.verb import Verb

VERBS = {"": Verb("openmai.serve.config:ServeConfig", "openmai.serve.server:serve", "OpenAI-style API and chat page")}
