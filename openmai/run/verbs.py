"""The verb that runs a whole recipe."""

from openmai.base.verb import Verb

VERBS = {
    "": Verb("openmai.run.config:RunConfig", "openmai.run.runner:run", "run a recipe: every stage in order, skipping what is finished")
}
