"""Request bodies."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class GenerationOptions(BaseModel):
    """Options of one request; those left out keep the values that the server was started with."""

    model_config = ConfigDict(extra="forbid")
    adapter: str | None = Field(default=None, description="One of /v1/models; by default the first.")
    max_tokens: int | None = Field(default=None, ge=1, description="At most what the server was started with.")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, ge=1, le=2)
    seed: int | None = Field(default=None, ge=0)
    attempts: int | None = Field(default=None, ge=1, le=16, description="Attempts at a document that compiles.")

    def overrides(self, max_tokens: int) -> dict[str, Any]:
        """Returns the settings that the request overrides, with its ``max_tokens`` limited to the server's."""
        names = GenerationOptions.model_fields.keys() - {"adapter"}
        overrides = self.model_dump(include=set(names), exclude_none=True)
        if "max_tokens" in overrides:
            overrides["max_tokens"] = min(overrides["max_tokens"], max_tokens)
        return overrides


class OpenAIOptions(GenerationOptions):
    """The options of ``/v1``: OpenAI's in addition to our own. OpenAI's that have no meaning here are ignored."""

    model_config = ConfigDict(extra="ignore")
    model: str = Field(default="", description="The name of an adapter; other names mean the default adapter.")
    stream: bool = Field(default=False, description="Server-sent events while the document is generated, once.")
    stream_options: dict[str, Any] | None = None
    n: Literal[1] = 1
    stop: None = Field(default=None, description="Not supported: a document ends where the model ends it.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Same as `max_tokens`.")

    def overrides(self, max_tokens: int) -> dict[str, Any]:
        self.max_tokens = self.max_tokens or self.max_completion_tokens
        overrides = super().overrides(max_tokens)
        if self.stream:
            overrides["attempts"] = 1  # text that was sent cannot be taken back
        return overrides


class CompletionRequest(OpenAIOptions):
    prompt: str = Field(min_length=1, description="A record as JSON, or a rendered prompt.")


class Message(BaseModel):
    role: str
    content: str


class ChatRequest(OpenAIOptions):
    messages: list[Message] = Field(min_length=1, description="The last user message is a record as JSON.")
