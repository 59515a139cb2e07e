"""Verbs of the tokenizer stage."""

from openmai.base.verb import Verb

VERBS = {
    "train": Verb(
        "openmai.tokenizer.config:TrainConfig", "openmai.tokenizer.train:train", "learn a byte-level BPE vocabulary from documents"
    ),
    "encode": Verb("openmai.tokenizer.config:EncodeConfig", "openmai.tokenizer.encode:encode", "turn documents into token shards"),
    "compare": Verb(
        "openmai.tokenizer.config:CompareConfig", "openmai.tokenizer.compare:compare", "bytes per token of several tokenizers on documents"
    ),
}
