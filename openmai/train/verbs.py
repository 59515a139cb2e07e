"""Verbs of the training stage."""

from openmai.base.verb import Verb

VERBS = {
    "pretrain": Verb("openmai.train.config:PretrainConfig", "openmai.train.pretrain:pretrain", "train a base model on token shards"),
    "consolidate": Verb(
        "openmai.train.config:ConsolidateConfig", "openmai.train.consolidate:consolidate", "a model from a run's checkpoint for resuming"
    ),
}
