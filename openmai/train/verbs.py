"""Verbs of the training stage."""

from openmai.base.verb import Verb

VERBS = {
    "pretrain": Verb("openmai.train.config:PretrainConfig", "openmai.train.pretrain:pretrain", "train a base model on token shards"),
    "launch": Verb("openmai.train.config:LaunchConfig", "openmai.train.launch:launch", "files for torchrun, Slurm or Kubernetes"),
    "dry-run": Verb("openmai.train.config:DryRunConfig", "openmai.train.dry_run:dry_run", "one step of one process of any cluster"),
    "consolidate": Verb(
        "openmai.train.config:ConsolidateConfig", "openmai.train.consolidate:consolidate", "a model from a run's checkpoint for resuming"
    ),
}
