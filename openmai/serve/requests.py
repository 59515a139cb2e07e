"""The bodies of requests: what of OpenAI's API is understood, and clear refusals for what is not."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, field_validator

from openmai.infer.config import Grammar, Sampling
from openmai.serve.errors import APIError
from openmai.serve.tools import Function, explain, must_call, write_call
from openmai.tokenizer.tokenizer import Message

MAX_CHOICES, MAX_PROMPTS, MAX_STOPS, MAX_LOGPROBS, MAX_TOOLS, MAX_BIASES = 16, 256, 16, 20, 128, 1024
GREATEST = 2**31  # no count of tokens goes beyond
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


def _whole_characters(text: str) -> str:
    """Refuse half of a UTF-16 pair, which JSON can spell but no text contains."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("contains half of a surrogate pair, which is not text")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Id = Annotated[int, Field(ge=0, lt=GREATEST, strict=True)]
Ids = Annotated[list[Id], Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Lenient(BaseModel):
    """Base of what comes from outside. Keys that change nothing about the answer (`user`, `metadata`, …) are ignored."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    def refuse(self, neutral: dict[str, tuple[Any, ...]]) -> None:
        """Raise for a setting that would change the answer if we could obey it, unless it has one of its `neutral` values."""
        for name, values in neutral.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in values:
                raise APIError(400, f"{name}: not supported by this server", name, "unsupported_parameter")


class StreamOptions(Lenient):
    include_usage: bool = False


class JSONSchema(Lenient):
    name: str = ""
    schema_: dict[str, JsonValue] = Field({}, alias="schema")


class ResponseFormat(Lenient):
    """`json_schema` stands inside in chat completions, and beside the type in responses."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JSONSchema | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")

    def grammar(self, param: str) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json_object")
        schema = self.schema_ if self.schema_ is not None else self.json_schema and self.json_schema.schema_
        if schema is None:
            raise APIError(400, f"{param}: json_schema needs a schema", param, "missing_required_parameter")
        return Grammar(kind="json_schema", text=json.dumps(schema))


class StructuredOutputs(Lenient):
    """What vLLM takes beside `response_format`: one of these."""

    json_: JsonValue = Field(None, alias="json")
    regex: Text | None = None
    grammar: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1)

    def read(self) -> Grammar | None:
        if self.regex is not None:
            return Grammar(kind="regex", text=self.regex)
        if self.grammar is not None:
            return Grammar(kind="lark", text=self.grammar)
        if self.choice is not None:
            return Grammar(kind="lark", text="start: " + " | ".join(json.dumps(choice) for choice in self.choice))
        if self.json_ is not None:
            return Grammar(kind="json_schema", text=self.json_ if isinstance(self.json_, str) else json.dumps(self.json_))
        return None


class SamplingRequest(Lenient):
    """How tokens are chosen; the settings that OpenAI does not have are named as in vLLM."""

    model: Text
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=GREATEST)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=MAX_BIASES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stop_token_ids: list[Id] | None = Field(None, max_length=MAX_STOPS)
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if any(not (key.isascii() and key.isdigit()) for key in value or ()):
            raise ValueError("keys must be token ids")
        return value

    def choice_sampling(self, choice: int, max_tokens: int, logprobs: int | None, stop: list[str], grammar: Grammar | None) -> Sampling:
        """Return the settings of one choice; each draws from a seed of its own."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((int(token), by) for token, by in (self.logit_bias or {}).items()),
            seed=None if self.seed is None else self.seed + choice,
            stop=tuple(stop),
            stop_ids=tuple(self.stop_token_ids or ()),
            ignore_ends=bool(self.ignore_eos),
            logprobs=logprobs,
            grammar=grammar,
        )


class CommonRequest(SamplingRequest):
    """What both kinds of completion share."""

    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: Annotated[Annotated[list[Text], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_as_list)] = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


# Messages and functions


class TextPart(Lenient):
    type: Literal["text", "input_text", "output_text", "refusal"]
    text: Text = ""


def join(content: Text | list[TextPart] | None) -> str:
    """Return content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class CalledFunction(Lenient):
    name: Text
    arguments: Text = ""


class ToolCall(Lenient):
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Lenient):
    """One message of a conversation; `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None


class DescribedFunction(Lenient):
    name: str = Field(pattern=NAME)
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None

    def read(self) -> Function:
        plain = Function(self.name, self.description or "")
        return plain if self.parameters is None else Function(self.name, plain.description, json.dumps(self.parameters))


class Tool(Lenient):
    """A function, its description inside as in chat completions."""

    type: Literal["function"]
    function: DescribedFunction


class NamedFunction(Lenient):
    name: str


class ToolChoice(Lenient):
    """A certain function: named inside as in chat completions, or beside the type as in responses."""

    type: Literal["function"]
    function: NamedFunction | None = None
    name: str | None = None

    @property
    def wanted(self) -> str:
        return self.function.name if self.function else self.name or ""


Choice = Literal["none", "auto", "required"] | ToolChoice


def offered(functions: list[Function], choice: Choice | None, parallel: bool) -> tuple[list[Function], Grammar | None]:
    """Return the functions that the model is told of, and what its answer has to look like if it must call."""
    if isinstance(choice, ToolChoice):
        found = [function for function in functions if function.name == choice.wanted]
        if not found:
            raise APIError(400, f"tool_choice: no function '{choice.wanted}' among the tools", "tool_choice", "invalid_value")
        return functions, must_call(found, parallel=False)
    if choice == "required" and not functions:
        raise APIError(400, "tool_choice: required, but there are no tools", "tool_choice", "invalid_value")
    if choice == "none":
        return [], None
    return functions, must_call(functions, parallel) if choice == "required" else None


def plain_messages(messages: list[ChatMessage], functions: list[Function]) -> list[Message]:
    """Return a conversation as the tokenizer takes it: functions in the system prompt, calls and their results as marked text."""
    plain: list[Message] = []
    if functions:
        plain.append({"role": "system", "content": explain(functions)})
    for number, message in enumerate(messages):
        text = join(message.content)
        if message.content is None and not message.tool_calls:
            param = f"messages[{number}].content"
            raise APIError(400, f"{param}: required, but not given", param, "missing_required_parameter")
        if message.role in ("system", "developer"):
            if functions and number == 0:
                plain[0]["content"] = f"{text}\n\n{plain[0]['content']}"
                continue
            plain.append({"role": "system", "content": text})
        elif message.role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
            if number and messages[number - 1].role == "tool":
                plain[-1]["content"] += "\n" + text
                continue
            plain.append({"role": "user", "content": text})
        else:
            calls = [write_call(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
            plain.append({"role": message.role, "content": "\n".join([text] * bool(text) + calls)})
    return plain


class ChatRequest(CommonRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=GREATEST)
    max_completion_tokens: int | None = Field(None, ge=1, lt=GREATEST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    def check(self) -> None:
        """Raise APIError for combinations and settings that have no answer."""
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError(400, "top_logprobs: needs logprobs to be true", "top_logprobs", "invalid_value")
        self.refuse(
            {"functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],), "audio": (), "web_search_options": ()}
        )


class CompletionRequest(CommonRequest):
    """Body of POST /v1/completions."""

    prompt: Text | list[int] | list[Text] | list[list[int]] = ""
    suffix: Text | None = None
    max_tokens: int | None = Field(None, ge=0, lt=GREATEST)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None

    @field_validator("prompt")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or (not isinstance(value[0], int) and len(value) > MAX_PROMPTS)):
            raise ValueError(f"give 1 to {MAX_PROMPTS} prompts")
        return value

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts as a list, each text or token ids."""
        return split(self.prompt)

    def check(self) -> None:
        """Raise APIError for settings that have no answer."""
        self.refuse({"best_of": (self.n or 1,)})
        if self.suffix and self.echo:
            raise APIError(400, "suffix: excludes echo", "suffix", "invalid_value")


def split(given: Text | list[int] | list[Text] | list[list[int]]) -> list[str | list[int]]:
    """Return one or several prompts, each text or token ids, as a list of them."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [[part for part in given if isinstance(part, int)]]
    return [part for part in given if not isinstance(part, int)]


# Responses


class FlatTool(DescribedFunction):
    """A function as the Responses API describes it."""

    type: Literal["function"]


class InputMessage(Lenient):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]


class InputCall(Lenient):
    type: Literal["function_call"]
    call_id: str
    name: Text
    arguments: Text


class InputResult(Lenient):
    type: Literal["function_call_output"]
    call_id: str
    output: Text | list[TextPart]


class TextSettings(Lenient):
    format: ResponseFormat | None = None


class ResponsesRequest(SamplingRequest):
    """Body of POST /v1/responses."""

    input: Text | Annotated[list[InputMessage | InputCall | InputResult], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=GREATEST)
    text: TextSettings | None = None
    tools: list[FlatTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None

    def check(self) -> None:
        """Raise APIError for settings that have no answer; nothing is stored, so nothing can be referred to."""
        self.refuse(
            {
                "previous_response_id": (),
                "conversation": (),
                "background": (False,),
                "prompt": (),
                "truncation": ("disabled",),
                "top_logprobs": (0,),
            }
        )

    def messages(self) -> list[ChatMessage]:
        """Return the input as chat messages."""
        found = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        for item in [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input:
            if isinstance(item, InputMessage):
                found.append(ChatMessage(role=item.role, content=item.content))
            elif isinstance(item, InputResult):
                found.append(ChatMessage(role="tool", content=item.output))
            else:
                call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
                if found and found[-1].role == "assistant":
                    found[-1] = found[-1].model_copy(update={"tool_calls": [*(found[-1].tool_calls or ()), call]})
                else:
                    found.append(ChatMessage(role="assistant", content=None, tool_calls=[call]))
        return found


# The rest


class EmbeddingRequest(Lenient):
    """Body of POST /v1/embeddings."""

    model: Text
    input: Text | Ids | Annotated[list[Text], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, lt=GREATEST)

    @field_validator("input")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if value == "" or (isinstance(value, list) and not isinstance(value[0], int) and (len(value) > MAX_PROMPTS or not all(value))):
            raise ValueError(f"give 1 to {MAX_PROMPTS} inputs, none of them empty")
        return value


class TokenizeRequest(Lenient):
    """Body of POST /tokenize: a prompt, or a conversation."""

    model: Text | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)


class DetokenizeRequest(Lenient):
    """Body of POST /detokenize."""

    model: Text | None = None
    tokens: list[Id]
