"""Bodies of requests, and of responses to invalid ones."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from typst_lit.inference.settings import RANGES, GenerationSettings, Sampling
from typst_lit.serving.service import MAX_ATTEMPTS

MAX_NAME_CHARS = 200
EXAMPLE_RECORD = {
    "starting_page": 1,
    "academic_year": "2025-26",
    "department": "Department of Physics",
    "project_title": "Measuring Rain",
    "contents_txt": "Chapter 1\n\nIntroduction\n\nIt rains more than it did. We measured how much.",
}
EXAMPLE_PROMPT = json.dumps(EXAMPLE_RECORD)


def _setting(name: str, description: str | None = None) -> Any:
    """Returns the field of an optional sampling setting, with the setting's range."""
    allowed = RANGES[name]
    return Field(
        default=None,
        ge=None if allowed.excludes_minimum else allowed.minimum,
        gt=allowed.minimum if allowed.excludes_minimum else None,
        le=allowed.maximum,
        description=description,
    )


class GenerationOptions(BaseModel):
    """Options of one request; those left out keep the values that the server was started with."""

    model_config = ConfigDict(extra="forbid")
    adapter: str | None = Field(
        default=None, max_length=MAX_NAME_CHARS, description="One of /v1/models; by default the first."
    )
    max_tokens: int | None = _setting("max_tokens", "Limited to the value that the server was started with.")
    temperature: float | None = _setting("temperature")
    top_p: float | None = _setting("top_p")
    top_k: int | None = _setting("top_k", "0 samples from all tokens.")
    repetition_penalty: float | None = _setting("repetition_penalty")
    seed: int | None = _setting("seed")
    sampling: Sampling | None = Field(
        default=None, description="Several settings together: greedy, or classic (temperature 0.7 and so on)."
    )
    attempts: int | None = Field(
        default=None, ge=1, le=MAX_ATTEMPTS, description="Maximum number of attempts, until the document is clean."
    )

    def settings(self, defaults: GenerationSettings) -> GenerationSettings:
        """Returns the sampling settings, with ``max_tokens`` limited to the default."""
        names = {field.name for field in fields(GenerationSettings) if field.init}
        settings = GenerationSettings(**self.model_dump(include=names, exclude_none=True)).with_defaults(defaults)
        return replace(settings, max_tokens=min(settings.max_tokens, defaults.max_tokens))

    @property
    def max_attempts(self) -> int | None:
        """The maximum number of attempts; None for the default."""
        return self.attempts


class OpenAIOptions(GenerationOptions):
    """The options of ``/v1``: OpenAI's in addition to our own. OpenAI's that have no meaning here are ignored."""

    model_config = ConfigDict(extra="ignore")
    model: str = Field(
        default="",
        max_length=MAX_NAME_CHARS,
        description="The name of an adapter; other names mean the default adapter.",
    )
    stream: bool = Field(
        default=False, description="Send the text as server-sent events while it is generated, in a single attempt."
    )
    stream_options: dict[str, Any] | None = None
    n: Literal[1] = 1
    stop: None = Field(default=None, description="Not supported: a document ends where the model ends it.")
    max_completion_tokens: int | None = _setting("max_tokens", "Same as `max_tokens`.")

    @model_validator(mode="after")
    def _rename_max_completion_tokens(self) -> OpenAIOptions:
        self.max_tokens = self.max_tokens or self.max_completion_tokens
        return self

    @property
    def max_attempts(self) -> int | None:
        """The maximum number of attempts: 1 for a stream, as text that was sent cannot be taken back."""
        return 1 if self.stream else self.attempts


class CompletionRequest(OpenAIOptions):
    """The body of ``/v1/completions``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": EXAMPLE_PROMPT}]})
    prompt: str = Field(min_length=1, description="A record as JSON, or a rendered prompt.")


class Message(BaseModel):
    """A message of a chat."""

    role: str
    content: str = Field(min_length=1)


class ChatRequest(OpenAIOptions):
    """The body of ``/v1/chat/completions``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": EXAMPLE_PROMPT}]}]}
    )
    messages: list[Message] = Field(min_length=1, description="The last user message is a record as JSON.")


class ErrorDetail(BaseModel):
    """An error in OpenAI's format."""

    message: str
    type: Literal["invalid_request_error", "server_error"]


class ErrorResponse(BaseModel):
    """The body of an error's response."""

    error: ErrorDetail
    detail: str = Field(description="The message again, where FastAPI's clients expect it.")
