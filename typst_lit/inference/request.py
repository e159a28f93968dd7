"""A document in flight: the request that enters an engine, and the completion that leaves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from typst_lit.contract.text_guard import TextGuard
from typst_lit.errors import UserError
from typst_lit.inference.constraints import OutputConstraint
from typst_lit.inference.prompt_lookup import IndexedText
from typst_lit.inference.sampling import Sampler, document_seed
from typst_lit.inference.settings import GenerationSettings
from typst_lit.inference.tracker import Check, OutputTracker


@dataclass(frozen=True)
class Completion:
    """What a model wrote for a request.

    Attributes:
        text: the Typst source, without the EOS token; what the model left open at its EOS token is closed.
        tokens: number of generated tokens, including the EOS token.
        finish_reason: ``stop`` when the model ended it, ``length`` when the token limit did, ``abandoned`` when it went
            wrong and another attempt follows.
        seconds: from its first forward pass to its end; others were generated in the same time.
        passes: forward passes that it took, those of its prompt not counted.
        rollbacks: how often decoding went back to a checkpoint, because the text after it does not compile.
        discarded: tokens that were discarded then.
        contract_abandoned: whether the model could not keep the text contract, so that it was not enforced to the end.

    Example:
        >>> Completion("= Rain", tokens=4, finish_reason="stop", seconds=0.1, passes=2).text
        '= Rain'
    """

    text: str
    tokens: int
    finish_reason: str
    seconds: float
    passes: int
    rollbacks: int = 0
    discarded: int = 0
    contract_abandoned: bool = False


@dataclass(eq=False)
class Request:
    """A prompt to be completed, and how far it is.

    What it generates is a function of prompt, settings and seed alone: it can be restarted at any time and gives the
    same document.

    Attributes:
        prompt: the ids of the prompt.
        settings: how to sample.
        seed: entropy of its random numbers; by default that of the settings and the prompt.
        adapter: the name of the adapter to use; None for the active one, or none.
        on_text: called in the engine's thread with all of the source so far, whenever there is more of it.
        guard: of the text contract that its output keeps; None without one.
        check: compiles what was written so far; None compiles nothing.
        may_abandon: whether it may end where it goes wrong, because another attempt would follow.
        future: its completion, or its error.
        finish_reason: None while it is decoded; then that of the completion.
        passes: forward passes that it took part in, those of its prompt not counted.
        text: prompt and output so far.
        tracker: what is known of the output; None without a constraint.
        closers: text that closes what the model left open at the end.
        max_tokens: maximum number of tokens of the output, in this model's context.
        started_at: when it joined the batch, in seconds of `time.monotonic`.
        num_reported: tokens at the last call of ``on_text``; a retry does not repeat them.
        isolated: whether it is decoded alone: its settings ask for it, or one of several requests made a step fail.

    Example:
        >>> request = Request([5, 6, 7], GenerationSettings(max_tokens=100))
        >>> request.output, request.finish_reason
        ([], None)
    """

    prompt: Sequence[int]
    settings: GenerationSettings
    seed: int | Sequence[int] | None = None
    adapter: str | None = None
    on_text: Callable[[str], None] | None = None
    guard: TextGuard | None = None
    check: Check | None = None
    may_abandon: bool = False
    future: Future[Completion] = field(default_factory=Future, init=False, repr=False)
    finish_reason: str | None = field(default=None, init=False)
    passes: int = field(default=0, init=False)
    max_tokens: int = field(default=0, init=False)
    started_at: float = field(default=0.0, init=False, repr=False)
    num_reported: int = field(default=0, init=False, repr=False)
    isolated: bool = field(default=False, init=False, repr=False)
    text: IndexedText = field(init=False, repr=False)
    tracker: OutputTracker | None = field(init=False, repr=False)
    closers: str = field(init=False, repr=False)
    sampler: Sampler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.isolated = self.settings.deterministic
        if self.seed is None:
            self.seed = document_seed(self.settings.seed, self.prompt)
        self.restart()

    def restart(self) -> None:
        """Discards what was generated."""
        assert self.seed is not None
        self.finish_reason, self.passes, self.max_tokens = None, 0, self.settings.max_tokens
        self.tracker, self.closers = None, ""
        self.text = IndexedText(self.prompt)
        copied = () if self.guard is None else self.prompt  # a penalty on its tokens would punish copying
        self.sampler = Sampler(self.settings, self.seed, copied)

    def track(self, constraint: OutputConstraint) -> None:
        """Follows the output from its first token on, if the settings ask for it."""
        if self.settings.valid_syntax:
            self.tracker = OutputTracker(constraint, self.guard, self.check, is_streamed=self.on_text is not None)

    @property
    def num_generated(self) -> int:
        """Tokens so far, without the EOS token."""
        return len(self.text.tokens) - len(self.prompt)

    @property
    def num_confirmed(self) -> int:
        """Tokens so far that can be shown while it is decoded, since they stay."""
        return self.num_generated if self.tracker is None else self.tracker.confirmed

    @property
    def output(self) -> list[int]:
        """The ids of the tokens so far, without the EOS token."""
        return self.text.tokens[len(self.prompt) :]

    def limit_to_context(self, max_positions: int | None, num_virtual_tokens: int = 0) -> None:
        """Limits the output to what a model's context leaves, after a soft prompt.

        Raises:
            UserError: when the prompt leaves no space for a document.
        """
        if max_positions is not None:
            self.max_tokens = min(self.max_tokens, max_positions - num_virtual_tokens - len(self.prompt))
        if self.max_tokens < 1:
            raise UserError(
                f"the record's prompt has {len(self.prompt)} tokens, and the model supports {max_positions}.",
                hint="Shorten the record's text.",
            )
