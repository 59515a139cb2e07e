"""Verbs of the model stage."""

from openmai.base.verb import Verb

VERBS = {
    "import": Verb(
        "openmai.model.import_config:ImportConfig", "openmai.model.import_hf:import_hf", "a checkpoint from a Hugging Face folder"
    ),
}
