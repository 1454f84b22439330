# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""OpenAI's chat completions as data: the fields of a request, and the form of answers, stream chunks and errors.

A field that is `null` counts as absent. Options that the server does not support are refused by name, never ignored.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from .writing import Written


GREEDY_BELOW = 1e-5  # logits divided by such a temperature overflow
MAX_STOPS = 4
MAX_REPORTED = 3  # mistakes of a request
CODES = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter", "only": "unsupported_value"}


class Refusal(Exception):
    """An error response to a request."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def only(value) -> Any:
    """A field that accepts only the value that the server has anyway."""

    def check(given):
        if given != value:
            raise PydanticCustomError("only", "only {value} is supported", {"value": json.dumps(value)})
        return given

    return Annotated[Any, AfterValidator(check)]


def shorthand(long_form) -> BeforeValidator:
    """Converts a plain text to the longer form."""
    return BeforeValidator(lambda given: long_form(given) if isinstance(given, str) else given)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, given):
        return {name: v for name, v in given.items() if v is not None} if isinstance(given, dict) else given


class ImageUrl(Strict):
    """detail: a hint, accepted without effect; the checkpoint decides into which views an image is split."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Part(Strict):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Annotated[ImageUrl, shorthand(lambda url: {"url": url})] | None = None

    @model_validator(mode="after")
    def fields_fit_the_type(self):
        if self.model_fields_set != {"type", self.type}:
            raise PydanticCustomError("part", "a part of this type has only the field `{type}`", {"type": self.type})
        return self

    @property
    def for_processor(self) -> dict:
        if self.type == "text":
            return {"type": "text", "text": self.text}
        return {"type": "image", "image": self.image_url.url}


class Message(Strict):
    """The chat template decides which roles are valid."""

    role: str
    content: Annotated[list[Part], Field(min_length=1), shorthand(lambda text: [{"type": "text", "text": text}])]

    @property
    def for_processor(self) -> dict:
        return {"role": self.role, "content": [part.for_processor for part in self.content]}


Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class GenerateFlags(Strict):
    """The fields of `generation_config`, which `transformers chat` sends."""

    do_sample: bool | None = None
    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    transformers_version: str | None = None


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS), shorthand(lambda s: [s])
    ] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    generation_config: Json[GenerateFlags] = GenerateFlags()
    user: str | None = None  # the client's end user: no answer depends on it
    n: only(1) = None
    logprobs: only(False) = None
    frequency_penalty: only(0) = None
    presence_penalty: only(0) = None
    logit_bias: only({}) = None
    response_format: only({"type": "text"}) = None
    tools: only([]) = None
    tool_choice: only("none") = None

    @model_validator(mode="after")
    def fits_together(self):
        if self.max_tokens and self.max_completion_tokens:
            raise PydanticCustomError("twice", "max_tokens and max_completion_tokens are the same; send one of them")
        if self.stream_options and not self.stream:
            raise PydanticCustomError("stream", "stream_options need stream=true")
        return self

    def max_new_tokens(self, default: int) -> int:
        return self.max_completion_tokens or self.max_tokens or self.generation_config.max_new_tokens or default

    def sampling(self) -> dict:
        """Options of `generate`: greedy unless the request has a temperature above 0, a top_p or do_sample."""
        named = {"temperature": self.temperature, "top_p": self.top_p}
        options = self.generation_config.model_dump(
            exclude_none=True, exclude={"max_new_tokens", "transformers_version"}
        )
        options |= {name: value for name, value in named.items() if value is not None}
        samples = options.pop("do_sample", None)
        hot = options["temperature"] > GREEDY_BELOW if "temperature" in options else samples or "top_p" in options
        if hot and samples is not False:
            return options | {"do_sample": True, "num_beams": 1}
        return {name: value for name, value in options.items() if name == "repetition_penalty"}


class LoadRequest(BaseModel):
    """The first request of `transformers chat`."""

    model: str


def read_request(body: bytes, kind: type[BaseModel]) -> BaseModel:
    """The request as data. Raises `Refusal` that names the wrong fields."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    required = " and ".join(name for name, known in kind.model_fields.items() if known.is_required())
    shown = wrong[:MAX_REPORTED]
    reasons = [_reason(one) or f"{one['msg']}; the body must be an object with {required}" for one in shown]
    raise Refusal(f"{'; '.join(reasons)}.", param=_place(wrong[0]) or None, code=CODES.get(wrong[0]["type"]))


def _place(wrong: dict) -> str:
    """The field's path such as `messages[0].content`; empty for the whole body."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong["loc"]).removeprefix(".")


def _reason(wrong: dict) -> str:
    got = "" if wrong["type"] == "missing" else f", got {wrong['input']!r:.80}"
    return f"{_place(wrong)}: {wrong['msg']}{got}" if wrong["loc"] else ""


@dataclass(frozen=True)
class Reply:
    """The response of an answer, whole or in chunks; `model` is the name in the request."""

    model: str
    num_prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, written: Written) -> dict:
        message = {"role": "assistant", "content": written.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": written.finish_reason}
        return self._envelope("chat.completion", [choice]) | self.usage(written)

    def piece(self, delta: dict, finish_reason: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._envelope("chat.completion.chunk", [choice])

    def last_piece(self, written: Written) -> dict:
        """The chunk of `stream_options.include_usage`."""
        return self._envelope("chat.completion.chunk", []) | self.usage(written)

    def usage(self, written: Written) -> dict:
        prompt, answer = self.num_prompt_tokens, written.num_tokens
        return {"usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}}

    def _envelope(self, kind: str, choices: list[dict]) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
