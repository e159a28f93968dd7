"""What requests may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """How one document is made; what is left out is as the server was started."""

    model_config = ConfigDict(extra="forbid")
    adapter: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, ge=1, le=2)
    seed: int | None = Field(default=None, ge=0)
    attempts: int | None = Field(default=None, ge=1, le=16)

    def changes(self, limit: int) -> dict[str, Any]:
        """Returns what is set, but for the adapter, with the tokens kept under the server's limit."""
        given = self.model_dump(exclude_none=True, exclude={"adapter"}, include=set(Options.model_fields))
        if "max_tokens" in given:
            given["max_tokens"] = min(given["max_tokens"], limit)
        return given


class OpenAIOptions(Options):
    """What `/v1` takes beside: OpenAI's names; those that mean nothing here are accepted and not used."""

    model_config = ConfigDict(extra="ignore")
    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: Literal[1] = 1
    stop: None = Field(default=None, description="Documents end by themselves: stop strings are refused.")
    max_completion_tokens: int | None = Field(default=None, ge=1)

    def changes(self, limit: int) -> dict[str, Any]:
        self.max_tokens = self.max_tokens or self.max_completion_tokens
        return super().changes(limit)


class CompletionRequest(OpenAIOptions):
    prompt: str = Field(min_length=1, description="A record as JSON, or a prompt that is already rendered.")


class Message(BaseModel):
    role: str
    content: str


class ChatRequest(OpenAIOptions):
    messages: list[Message] = Field(min_length=1, description="The last one of the user is a record as JSON.")
