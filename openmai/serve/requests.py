"""The bodies of requests: what of OpenAI's API is understood, and clear refusals for what is not yet."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from openmai.infer.config import Sampling
from openmai.serve.errors import APIError
from openmai.tokenizer.tokenizer import Message

MAX_CHOICES, MAX_PROMPTS, MAX_STOPS, MAX_LOGPROBS = 16, 256, 16, 20


def _whole_characters(text: str) -> str:
    """Refuse half of a UTF-16 pair, which JSON can spell but no text contains."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("contains half of a surrogate pair, which is not text")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class BaseRequest(BaseModel):
    """What both kinds of completion share. Keys that change nothing about the answer (`user`, `metadata`, …) are ignored."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Text] | None = Field(None, max_length=MAX_STOPS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def refuse(self, neutral: dict[str, tuple[Any, ...]]) -> None:
        """Raise for a setting that would change the answer if we could obey it, unless it has one of its `neutral` values."""
        for name, values in neutral.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in values:
                raise APIError(400, f"{name}: not supported by this server", name, "unsupported_parameter")

    def sampling(self, choice: int, max_tokens: int, logprobs: int | None) -> Sampling:
        """Return the settings of one choice; each draws from a seed of its own."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed + choice,
            stop=tuple(self.stop or ()),
            logprobs=logprobs,
        )


class ChatRequest(BaseRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    def check(self) -> None:
        """Raise APIError for combinations and settings that have no answer."""
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError(400, "top_logprobs: needs logprobs to be true", "top_logprobs", "invalid_value")
        self.refuse(
            {
                "tools": ([],),
                "tool_choice": ("none", "auto"),
                "functions": ([],),
                "response_format": ({"type": "text"},),
                "logit_bias": ({},),
                "frequency_penalty": (0,),
                "presence_penalty": (0,),
                "modalities": (["text"],),
            }
        )


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One message of a conversation; `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> Message:
        """Return role and text as the tokenizer takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class CompletionRequest(BaseRequest):
    """Body of POST /v1/completions."""

    prompt: Text | list[int] | list[Text] | list[list[int]] = ""
    max_tokens: int | None = Field(None, ge=0)
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
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]

    def check(self) -> None:
        """Raise APIError for settings that have no answer."""
        self.refuse(
            {
                "suffix": ("",),
                "best_of": (self.n or 1,),
                "logit_bias": ({},),
                "frequency_penalty": (0,),
                "presence_penalty": (0,),
            }
        )


ChatRequest.model_rebuild()
