"""An output while it is decoded: the states of its tokens, the checks of what was written, and how far to go back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from typst_lit.contract.text_guard import TextGuard
from typst_lit.inference.constraints import OutputConstraint, OutputState
from typst_lit.typesetting.escaping import escape_markup, escape_string
from typst_lit.typesetting.syntax import MARKUP_MODES, Mode, closers

MAX_UNCHECKED = 40  # tokens with code after which a construct that is still open is checked
MAX_DOUBTFUL = 8  # likewise, after a failure near it
MAX_OPEN = 320  # tokens of a construct that may lack an argument until then
MAX_ALTERNATIVES = 3  # of code that fails after the same tokens; then there is none
MAX_FAILURES = 8  # after the same tokens: past the alternatives, each goes back further
MAX_REFUSED = 48  # tokens without a further line, while EOS is refused
MAX_CONFLICTS = 3  # after which the contract is abandoned
MIN_DISCARDED = 2048  # tokens that may always be discarded, or as many as the output has


class PrefixCheck(NamedTuple):
    """Whether what was written so far compiles, with what is open closed.

    Attributes:
        ok: whether it does.
        position: the character at which the error is; None if it is not known.
        is_incomplete: whether the error is only that something still has to follow.
        is_invented: whether it shows words that are neither in the record nor in the style.
    """

    ok: bool
    position: int | None = None
    is_incomplete: bool = False
    is_invented: bool = False


# Of a prefix, of what closes it, and of whether it is final
Check = Callable[[str, str, bool], "Future[PrefixCheck]"]


class _Pending(NamedTuple):
    num_tokens: int
    result: Future[PrefixCheck] | None  # None where there is nothing to compile
    is_final: bool = False


class OutputTracker:
    """Follows one output while it is decoded.

    Where code was written, it is compiled at the end of the line, while decoding continues. If that fails, the output
    goes back to where the construct with the error begins; the token that began it is excluded there. If the error
    stays, it goes back further each time. Where it goes back to depends on the text only, never on when an answer
    arrives.

    Args:
        constraint: which tokens may follow.
        guard: of the text contract; None without one.
        check: compiles a prefix; None compiles nothing.
        is_streamed: whether the output is shown while it is written: then it never goes back behind ``confirmed``.

    Attributes:
        states: after each number of tokens, what is known.
        num_rollbacks: how often it went back.
        num_discarded: tokens that were discarded.
        confirmed: number of tokens that were checked.
    """

    def __init__(
        self,
        constraint: OutputConstraint,
        guard: TextGuard | None = None,
        check: Check | None = None,
        is_streamed: bool = False,
    ) -> None:
        self.states = [OutputState()]
        self.num_rollbacks = self.num_discarded = self.confirmed = 0
        self._conflicts: list[int] = []  # numbers of tokens before them
        self._constraint = constraint
        self._guard = guard
        self._check = check
        self._is_streamed = is_streamed
        self._excluded: dict[int, set[int]] = {}
        self._text_only: set[int] = set()  # numbers of tokens after which no code may start
        self._refused: dict[int, int] = {}  # by the number of missing lines: where EOS was refused first
        self._last_due = 0
        self._passed = [0]
        self._pending: deque[_Pending] = deque()
        self._failed_at = -MAX_UNCHECKED
        self._failures: Counter[int] = Counter()  # by the number of tokens before what failed

    @property
    def num_tokens(self) -> int:
        """Number of tokens so far."""
        return len(self.states) - 1

    # Tokens

    def append(self, token: int) -> bool:
        """Adds a token, if it may follow; returns whether it may."""
        if token in self._excluded.get(self.num_tokens, ()):
            return False
        state = self._constraint.advance(self.states[-1], token, self._guard)
        if state is None or (self.num_tokens in self._text_only and state.num_code > self.states[-1].num_code):
            return False
        self.states.append(state)
        return True

    def add_conflict(self) -> bool:
        """Notes that the model was sure of a token that must not follow; returns whether to abandon the contract.

        Text that may follow is not yet right: a model that is forced too often writes nonsense.
        """
        if self._guard is None:
            return False
        self._conflicts.append(self.num_tokens - 1)
        return len(self._conflicts) >= MAX_CONFLICTS

    def abandon_contract(self) -> int | None:
        """Stops enforcing the contract, if there were conflicts; returns the number of tokens before the first one."""
        if self._guard is None or not self._conflicts:
            return None
        self._guard = None
        return max(0, self._conflicts[0], self._floor)

    def may_end(self) -> bool:
        """Returns whether the output may end here, as the model wants it to."""
        state = self.states[-1]
        if self._guard is None or state.text is None:
            return self._guard is None or not self._refuse(-1)
        return not (missing := self._guard.missing_lines(state.text)) or not self._refuse(len(missing))

    def _refuse(self, num_missing: int) -> bool:
        first = self._refused.setdefault(num_missing, self.num_tokens)
        return self.num_tokens - first <= MAX_REFUSED

    def forced_tokens(self) -> list[int]:
        """Returns tokens that have to follow, since a line of the record is being copied; or none."""
        state = self.states[-1]
        if self._guard is None or state.text is None or state.pending or state.syntax.pending:
            return []
        text = self._guard.forced_text(state.text)
        if not text or text[0].isalnum():  # a word is completed by the model, with its usual tokens
            return []
        return self._constraint.encode(self._escaped(text))

    def suggested_tokens(self) -> list[int]:
        """Returns tokens that may follow, where few do."""
        state = self.states[-1]
        texts = [closers(state.syntax)[:1], "\n", " "]
        if self._guard is not None and state.text is not None:
            texts += self._guard.next_texts(state.text)
        texts = [text for raw in texts if raw for text in (self._escaped(raw), raw.lstrip()[:1])]
        ids = (self._constraint.encode(text[:24]) for text in dict.fromkeys(texts))
        return list(dict.fromkeys(tokens[0] for tokens in ids if tokens))

    def _escaped(self, text: str) -> str:
        mode = self.states[-1].syntax.stack[-1].mode
        if mode in MARKUP_MODES and self._guard is not None:
            return escape_markup(text, self._guard.contract.unescaped)
        return escape_string(text) if mode is Mode.STRING else text

    @property
    def closers(self) -> str:
        """The text that closes all that is open."""
        return closers(self.states[-1].syntax)

    # Checks

    def check_due(self, source: Callable[[int], str]) -> None:
        """Starts the checks that are due after the last tokens.

        Args:
            source: returns the text of a number of tokens.
        """
        if self._check is None:
            self.confirmed = self.num_tokens
            return
        for count in range(self._last_due + 1, len(self.states)):
            state = self.states[count]
            has_code = state.num_code > self.states[self._last_due].num_code
            is_line_end = _is_closed(state) and state.syntax.after_newline
            if not has_code and is_line_end:
                self._add(_Pending(count, None))
            elif has_code and (is_line_end or self._is_long(count)):
                self._add(_Pending(count, self._check(source(count), closers(state.syntax), False)))

    def _is_long(self, count: int) -> bool:
        state = self.states[count]
        if state.pending or state.syntax.pending or state.syntax.previous.isalnum():
            return False  # a part of a word would count as invented
        mode = state.syntax.stack[-1].mode
        limit = MAX_DOUBTFUL if count <= self._failed_at + MAX_UNCHECKED else MAX_UNCHECKED
        return count - self._last_due >= limit and mode not in (Mode.STRING, Mode.RAW, Mode.BLOCK_COMMENT)

    def _add(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._last_due = pending.num_tokens

    def check_end(self, source: str) -> None:
        """Starts the check of a complete output."""
        if self._check is not None:
            self._add(_Pending(self.num_tokens, self._check(source, self.closers, True), is_final=True))

    def settle(self, wait: bool) -> int | None:
        """Looks at the answers of checks, in the order of the text.

        Args:
            wait: wait for those that are not there yet.

        Returns:
            The number of tokens to go back to with `truncate`; None when nothing failed.
        """
        while self._pending:
            pending = self._pending[0]
            if pending.result is not None and not wait and not pending.result.done():
                return None
            self._pending.popleft()
            check = PrefixCheck(True) if pending.result is None else pending.result.result()
            if check.ok and not (check.is_invented and self._guard is not None):
                self._passed.append(pending.num_tokens)
                self.confirmed = pending.num_tokens
            elif not self._is_decided(check, pending):
                continue
            elif (target := self._target(check, pending.num_tokens)) is not None:
                return target
        return None

    def leave_dead_end(self) -> int | None:
        """Returns the number of tokens to go back to where no token may follow; None when it is given up."""
        return self._target(PrefixCheck(False, self.states[-1].length), self.num_tokens)

    def _is_decided(self, check: PrefixCheck, pending: _Pending) -> bool:
        """Returns whether an error stays whatever follows."""
        if pending.is_final or not check.is_incomplete or _is_closed(self.states[pending.num_tokens]):
            return True
        return pending.num_tokens - self._passed[-1] > MAX_OPEN

    def _target(self, check: PrefixCheck, failed_at: int) -> int | None:
        """Returns how many tokens of an output that failed are kept; None when it is given up."""
        self._failed_at = failed_at
        start = self._passed[-1] if check.position is None else self._construct_start(check.position)
        start = min(start, failed_at - 1)
        self._failures[start] += 1
        num_failures = self._failures[start]
        is_spent = self.num_discarded > max(MIN_DISCARDED, self.num_tokens)
        if num_failures > MAX_FAILURES or is_spent or failed_at <= self._floor:
            self._check = None
            self._pending.clear()
            return None
        if num_failures > MAX_ALTERNATIVES:
            start = min(start, self._passed[-min(len(self._passed), num_failures - MAX_ALTERNATIVES)])
        return max(start, self._floor)

    @property
    def _floor(self) -> int:
        """Number of tokens behind which it does not go back."""
        return self.confirmed if self._is_streamed else 0

    def _construct_start(self, position: int) -> int:
        """Returns the number of tokens before the construct at a character."""
        count = next((i for i, state in enumerate(self.states) if state.length > position), len(self.states))
        count = max(0, count - 1)
        while count and self.states[count].syntax.stack[-1].mode not in MARKUP_MODES:
            count -= 1
        return count

    def truncate(self, num_tokens: int) -> None:
        """Goes back to a number of tokens."""
        self.num_discarded += self.num_tokens - num_tokens
        del self.states[num_tokens + 1 :]
        self._conflicts = [count for count in self._conflicts if count < num_tokens]
        self._excluded = {count: tokens for count, tokens in self._excluded.items() if count <= num_tokens}
        self._text_only = {count for count in self._text_only if count <= num_tokens}
        self._refused = {missing: count for missing, count in self._refused.items() if count <= num_tokens}
        self._passed = [count for count in self._passed if count <= num_tokens] or [0]
        self._pending = deque(pending for pending in self._pending if pending.num_tokens <= num_tokens)
        self._last_due = self._pending[-1].num_tokens if self._pending else self._passed[-1]
        self.confirmed = min(self.confirmed, num_tokens)

    def exclude(self, token: int) -> None:
        """Excludes a token here, after which the output could not be continued."""
        self.num_rollbacks += 1
        self._excluded.setdefault(self.num_tokens, set()).add(token)
        if self._failures[self.num_tokens] == MAX_ALTERNATIVES:
            self._text_only.add(self.num_tokens)


def _is_closed(state: OutputState) -> bool:
    """Returns whether no code is open."""
    return all(frame.mode in MARKUP_MODES for frame in state.syntax.stack)
