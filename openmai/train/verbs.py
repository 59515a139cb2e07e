"""Verbs of the training stage."""

from openmai.base.verb import Verb

VERBS = {"pretrain": Verb("openmai.train.config:PretrainConfig", "openmai.train.pretrain:pretrain", "train a base model on token shards")}
