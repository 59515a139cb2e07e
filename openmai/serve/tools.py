"""Functions that a model may call: how they are told to it, and how its calls are read.

Calls are written as Hermes and Qwen write them, which many models have learned:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openmai.infer.config import Grammar
from openmai.infer.grammar import SPACING

OPEN, CLOSE = "<tool_call>", "</tool_call>"
EXPLANATION = (
    "You may call functions. These are their signatures:\n<tools>\n{signatures}\n</tools>\n"
    'To call one, write for each call:\n<tool_call>\n{{"name": <function name>, "arguments": <JSON object>}}\n</tool_call>'
)


@dataclass(frozen=True)
class Function:
    """A function as the caller describes it; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'

    def signature(self) -> str:
        described = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return json.dumps({"type": "function", "function": described}, ensure_ascii=False)


@dataclass(frozen=True)
class Call:
    """A call that the model wants made; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


def explain(functions: Sequence[Function]) -> str:
    """Return what the system prompt says about functions."""
    return EXPLANATION.format(signatures="\n".join(function.signature() for function in functions))


def write_call(name: str, arguments: str) -> str:
    """Return a call as the model writes it."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        value = arguments
    return f"{OPEN}\n{json.dumps({'name': name, 'arguments': value}, ensure_ascii=False)}\n{CLOSE}"


def read_call(text: str, functions: Sequence[Function]) -> Call | None:
    """Return the call that is written in `text`; None if it is none, or of a function that nobody offered."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("name") not in {function.name for function in functions}:
        return None
    arguments = value.get("arguments", {})
    return (
        Call(f"call_{uuid.uuid4().hex[:24]}", value["name"], json.dumps(arguments, ensure_ascii=False))
        if isinstance(arguments, dict)
        else None
    )


def must_call(functions: Sequence[Function], parallel: bool) -> Grammar:
    """Return the grammar of an answer that calls one of `functions`, or several where `parallel`."""
    rules = [
        f"start: call {'(SEPARATOR call)*' if parallel else ''}",
        'SEPARATOR: "\\n"',
        f'call: "{OPEN}\\n" ({_alternatives(functions)}) "\\n{CLOSE}"',
    ]
    for number, function in enumerate(functions):
        arguments = json.loads(function.parameters)
        definitions = {
            name: arguments.pop(name) for name in ("$defs", "definitions") if name in arguments
        }  # references count from the root
        schema: dict[str, Any] = definitions | {
            "type": "object",
            "properties": {"name": {"const": function.name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "x-guidance": SPACING,
        }
        rules.append(f"call_{number}: %json {json.dumps(schema)}")
    return Grammar(kind="lark", text="\n".join(rules))


def _alternatives(functions: Sequence[Function]) -> str:
    return " | ".join(f"call_{number}" for number in range(len(functions)))
