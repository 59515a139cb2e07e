"""OMP_NUM_THREADS=1 python -m pytest tests/test_infer_grammar.py

Answers of a model that knows nothing, held to grammars: whatever it would say, what it says fits.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from conftest import randomize

from openmai.infer.config import EngineConfig, Grammar, Sampling
from openmai.infer.engine import Engine
from openmai.infer.grammar import GrammarError
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

SCHEMAS = 200


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Path) -> Iterator[Engine]:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(tiny_tokenizer)
    model = Transformer(
        ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, width=16, num_heads=2, ffn_width=16, context=4096)
    ).eval()
    randomize(model, seed=4)
    with Engine(model, tokenizer, EngineConfig(rows=32)) as running:
        yield running


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Draw a schema whose every answer is short."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    kind = rng.choice(kinds + ["object", "array", "anyOf", "tuple", "reference"] * (3 if depth == 0 else depth < 3))
    if kind == "string":
        least = rng.randrange(3)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(4)}
    if kind == "integer":
        least = rng.randrange(-50, 50)
        return {"type": "integer", "minimum": least, "maximum": least + rng.randrange(1, 900)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "exclusiveMaximum": rng.choice((1, 7.5)), "multipleOf": 0.5}
    if kind == "enum":
        return {"enum": rng.sample(["a", "ä", 1, 2.5, None, True, "x y", '"'], 3)}
    if kind == "const":
        return {"const": rng.choice(["fixed", 7, {"k": [1, "z"]}])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice((r"^[a-c]{2,3}$", r"^\d{3}-\d{2}$", "^(yes|no)$"))}
    if kind == "format":
        return {"type": "string", "format": rng.choice(("date", "ipv4", "uuid"))}
    if kind == "object":
        names = rng.sample(["name", "id", "größe", "tags", "x"], rng.randrange(1, 4))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth + 1) for name in names},
            "required": rng.sample(names, rng.randrange(len(names) + 1)),
            "additionalProperties": False,
        }
    if kind == "array":
        least = rng.randrange(2)
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": least, "maxItems": least + rng.randrange(3)}
    if kind == "tuple":
        return {"type": "array", "prefixItems": [random_schema(rng, depth + 1) for _ in range(2)], "items": False, "minItems": 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "reference" and not depth:
        part = random_schema(rng, depth + 1)
        return {"$defs": {"part": part}, "type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}
    return {"type": kind if kind in ("boolean", "null") else "boolean"}


def test_every_answer_validates_against_its_schema(engine: Engine) -> None:
    rng = random.Random(1)
    schemas = [random_schema(rng) for _ in range(SCHEMAS)]
    requests = [
        engine.submit(
            [9, 20 + number], Sampling(max_tokens=3000, seed=number, grammar=Grammar(kind="json_schema", text=json.dumps(schema)))
        )
        for number, schema in enumerate(schemas)
    ]
    for schema, request in zip(schemas, requests, strict=True):
        answer = request.result()
        assert answer.finish_reason == "stop", schema
        jsonschema.validate(json.loads(answer.text), schema)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar(kind="regex", text="[a-f]{4}(-[0-9]+){1,2}!"), r"[a-f]{4}(-[0-9]+){1,2}!"),
        (Grammar(kind="lark", text='start: "<" NAME ">" NAME\nNAME: /[xyz]{1,5}/'), r"<[xyz]{1,5}>[xyz]{1,5}"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_expressions_and_grammars(grammar: Grammar, pattern: str, temperature: float, engine: Engine) -> None:
    answers = engine.generate([[9], [30, 31]] * 4, Sampling(max_tokens=400, temperature=temperature, seed=3, grammar=grammar))
    for answer in answers:
        assert re.fullmatch(pattern, answer.text) or answer.finish_reason == "length"
    assert any(answer.finish_reason == "stop" for answer in answers) or temperature == 0


def test_constraints_and_guesses_go_together(engine: Engine) -> None:
    sampling = Sampling(max_tokens=200, seed=1, grammar=Grammar(kind="regex", text="(abcabc ){6}[0-9]{4}"))
    plain = engine.generate([[9], [40]], sampling)
    config = EngineConfig(rows=4, speculate="ngram")
    with Engine(engine.model, engine.tokenizer, config) as guessing:
        assert guessing.generate([[9], [40]], sampling) == plain
        assert guessing.stats.kept > 20


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (Grammar(kind="json_schema", text='{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Grammar(kind="json_schema", text='{"if": {"type": "string"}, "then": {"minLength": 2}}'), "if"),
        (Grammar(kind="json_schema", text="{"), "not valid JSON"),
        (Grammar(kind="json_schema", text='{"$ref": "https://example.org/x.json"}'), "example.org"),
        (Grammar(kind="regex", text="(unclosed"), "unclosed"),
        (Grammar(kind="lark", text="start: missing"), "missing"),
    ],
)
def test_what_cannot_be_followed_is_named_before_anything_runs(grammar: Grammar, named: str, engine: Engine) -> None:
    with pytest.raises(GrammarError, match=re.escape(named)):
        engine.submit([9], Sampling(grammar=grammar))
    assert engine.load() == (0, 0)
