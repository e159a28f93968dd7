"""An output while it is decoded: the states of its tokens, the checks of what was written, and how far to go back."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from typst_lit.contract.record_text import start_positions
from typst_lit.contract.text_guard import MARK, TextGuard, TextState
from typst_lit.inference.constraints import OutputConstraint, OutputState
from typst_lit.typesetting.escaping import escape_markup, escape_string
from typst_lit.typesetting.syntax import CODE_MODES, MARKUP_MODES, Mode, closers

MAX_UNCHECKED = 24  # tokens with code after which a construct that is still open is checked
MIN_UNCHECKED = 3  # each failure within NEAR tokens halves that number, down to this one
NEAR = 64
MAX_STRING = 48  # tokens after which it is checked within a string of code, which may be a part of a path
MAX_OPEN = 320  # tokens of a construct that may lack an argument until then
MAX_LOCAL = 3  # tokens with an error that are excluded after the same tokens; then code is written again
MAX_STEPS_BACK = 2  # of one token each, from where no token may follow
MAX_ALTERNATIVES = 3  # of code that fails after the same tokens; then there is none
MAX_FAILURES = 8  # after the same tokens: past the alternatives, each goes back further
END = -2  # where the output is complete, although the model does not end it
MIN_ODDS = 0.01  # of a token that may follow, against the one that the model wanted in its position
MAX_CONFLICTS = 3  # after which the contract is abandoned
MIN_REPEATED = 96  # characters without text that may be a repetition
MAX_PERIOD, MAX_REPEATS = 48, 4  # of tokens
MIN_REPEATED_TOKENS = 32  # in all: as many equal columns of a table are no repetition
MIN_DISCARDED = 2048  # tokens that may always be discarded, or as many as the output has


class PrefixCheck(NamedTuple):
    """Whether what was written so far compiles, with what is open closed.

    Attributes:
        ok: whether it does.
        position: the character at which the error or the invented word is; None if it is not known.
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

    Where code was written, it is compiled at the end of the line, while decoding continues. If that fails, the token
    with the error is excluded in its position. If errors stay, the output goes back to where the construct begins, and
    then further each time. Where it goes back to depends on the text only, never on when an answer arrives.

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
        has_given_up: whether what failed was written again in vain, so that nothing is checked any longer; text without
            code follows.
    """

    def __init__(
        self,
        constraint: OutputConstraint,
        guard: TextGuard | None = None,
        check: Check | None = None,
        is_streamed: bool = False,
    ) -> None:
        self.states = [OutputState()]
        self._tokens: list[int] = []
        self.num_rollbacks = self.num_discarded = self.confirmed = 0
        self.has_given_up = False
        self._conflicts: list[int] = []  # numbers of tokens before them
        self._constraint = constraint
        self._guard = guard
        self._check = check
        self._is_streamed = is_streamed
        self._excluded: dict[int, set[int]] = {}
        self._text_only: set[int] = set()  # numbers of tokens after which no code may start
        self._has_text_only = False  # from here on, after code that kept failing
        self._queued: tuple[int, list[int]] = (0, [])  # tokens that follow after a number of tokens
        self._last_due = 0
        self._passed = [0]
        self._pending: deque[_Pending] = deque()
        self._failed_at: list[int] = []  # numbers of tokens
        # by the number of tokens before what failed: the code, or the token with the error
        self._failures: Counter[int] = Counter()
        self._local_failures: Counter[int] = Counter()
        self._last_dead_end = self._num_steps_back = 0

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
        if state is None or (self._may_only_be_text and state.num_code > self.states[-1].num_code):
            return False
        if self._queued_tokens and self._queued_tokens[0] != token:
            self._queued = (0, [])
        self._tokens[self.num_tokens :] = [token]
        self.states.append(state)
        return True

    @property
    def _may_only_be_text(self) -> bool:
        return self._has_text_only or self.num_tokens in self._text_only

    @property
    def is_stalled(self) -> bool:
        """Whether code and markup without text repeat, or are longer than in any training output."""
        state = self.states[-1]
        gap = state.length - state.text_length
        if self._guard is None or gap < MIN_REPEATED:
            return False
        return not self._guard.may_have_gaps(state.all_gaps) or is_repeating(self._tokens[self._text_end :])

    def leave_stall(self) -> int | None:
        """Returns the number of tokens to go back to, after which text follows; None when it is given up."""
        start = self._text_end
        self._local_failures[start] += 1
        is_shown = self._floor >= self.num_tokens
        if self._guard is None or is_shown or self._local_failures[start] > MAX_LOCAL:
            return None
        closed = (
            count
            for count in range(start, self.num_tokens)
            if _is_closed(self.states[count])
            and not self.states[count].pending
            and self._guard.is_between_phrases(self.states[count].text or TextState())
        )
        return min(max(next(closed, start), self._floor), self.num_tokens - 1)

    @property
    def _text_end(self) -> int:
        """Number of tokens up to the last visible letter."""
        return bisect_left(self.states, self.states[-1].text_length, key=lambda state: state.text_length)

    def resolve_conflict(self, token: int, refused: int) -> int | None:
        """Returns which token to keep after one that the model did not want at all, or None to go back.

        What may follow is not yet right: a model that is forced too often writes nonsense. Code, with the text in it,
        is written again from where it fails. In other text, what is open is closed, some words may deviate from the
        contract, and between two lines of the record, the next one follows. Only a few other conflicts are accepted.

        Args:
            token: the last token.
            refused: what the model chose in its position.
        """
        if self.has_given_up:
            return token
        before = self.states[-2]
        if before.syntax.stack[-1].mode in MARKUP_MODES:
            if self._guard is None or not self._is_guarded(before, refused):
                return token
            deviating = self._constraint.advance(before, refused, self._guard, may_deviate=True)
            if deviating is not None and refused not in self._excluded.get(self.num_tokens - 1, ()):
                self.states[-1] = deviating
                self._tokens[-1] = refused
                return refused
            if _is_closed(before):
                self.states.pop()
                if (certain := self.add_next_line()) is not None:
                    return certain
                if self.is_complete:
                    return END
                self.append(token)
                if not self._may_exclude_last():
                    self._conflicts.append(self.num_tokens - 1)
                    if len(self._conflicts) < MAX_CONFLICTS:
                        return token
        self.states.pop()
        return None

    def _may_exclude_last(self) -> bool:
        """Returns whether the last token before a conflict may be excluded."""
        last = self.num_tokens - 2
        return last >= self._floor and self._local_failures[last] < MAX_LOCAL

    def _is_guarded(self, state: OutputState, token: int) -> bool:
        """Returns whether only the contract keeps a token from following."""
        if self._constraint.advance(state, token) is None:
            return False
        return self._constraint.advance(state, token, self._guard) is None

    @property
    def has_contract(self) -> bool:
        """Whether a contract is enforced."""
        return self._guard is not None

    @property
    def has_failed_contract(self) -> bool:
        """Whether there were too many conflicts with the contract, which is to be abandoned."""
        return self._guard is not None and len(self._conflicts) >= MAX_CONFLICTS

    def abandon_contract(self) -> int:
        """Stops enforcing the contract; returns the number of tokens before the first conflict with it."""
        self._guard = None
        self.has_given_up = False
        self._failures.clear()
        return max(self._floor, min([*self._conflicts, self.num_tokens]))

    def may_end(self) -> bool:
        """Returns whether the output may end here, as the model wants it to."""
        return self._guard is None or not self._guard.missing_lines(self.states[-1].text or TextState())

    @property
    def is_complete(self) -> bool:
        """Whether no line of the record is left, at a point between two phrases."""
        text = self.states[-1].text or TextState()
        if self._guard is None or not self._guard.is_between_phrases(text) or not self.may_end():
            return False
        return self._guard.next_line(text) is None

    def add_next_line(self) -> int | None:
        """Starts the rest of the line that is being copied, or the next line, where the model wants something else.

        Returns:
            The first token, which is added; the others are `forced_tokens`. None where it can't be done.
        """
        if not self._queue_next_line():
            return None
        token = self._queued_tokens[0]
        self.append(token)
        return token

    def _queue_next_line(self) -> bool:
        """Forces the rest of the line that is being copied, or the next line; returns whether it may follow."""
        state = self.states[-1]
        if self._guard is None or state.pending or not _is_closed(state):
            return False
        text = state.text or TextState()
        unescaped = self._guard.contract.unescaped
        candidates = []
        if rest := self._guard.rest_of_line(text):
            candidates.append(escape_markup(rest, unescaped, at_line_start=rest[0].isalnum()))
        elif line := self._guard.next_line(text):
            if text.gap.endswith((MARK, f"{MARK} ")) or state.syntax.pending[:1] in (*"+-/=",):
                item = escape_markup(line.raw[line.offsets[start_positions(line)[-1]] :], unescaped)
                candidates += [f" {item}", item]
            paragraph = escape_markup(line.raw, unescaped, at_line_start=True)
            candidates.append(f"{closers(state.syntax)}\n\n{paragraph}")
        for added in candidates:
            tokens = self._constraint.encode(added)
            if self._may_follow(tokens):
                self._queued = (self.num_tokens, tokens)
                return True
        return False

    def _may_follow(self, tokens: Sequence[int]) -> bool:
        if tokens[0] in self._excluded.get(self.num_tokens, ()):
            return False
        state = self.states[-1]
        for token in tokens:
            following = self._constraint.advance(state, token, self._guard)
            if following is None:
                return False
            state = following
        return True

    @property
    def _queued_tokens(self) -> list[int]:
        start, tokens = self._queued
        return tokens[self.num_tokens - start :]

    @property
    def min_odds(self) -> float:
        """How much likelier than the model's choice a forced token has to be: what is missing is added anyway."""
        return 0.0 if self._queued_tokens else MIN_ODDS

    def forced_tokens(self) -> list[int]:
        """Returns tokens that have to follow, since a line of the record is being copied; or none."""
        state = self.states[-1]
        if queued := self._queued_tokens:
            return queued
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
            texts += self._guard.next_names(state.syntax) + self._guard.next_texts(state.text)
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
        if self._check is None or self.has_given_up:
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
        is_incomplete = state.syntax.pending and not state.syntax.pending.lstrip(".").isalnum()
        if state.pending or is_incomplete or self._is_inside_word(count):
            return False  # a part of a word would count as invented
        num_failures = sum(count - NEAR < failed_at <= count + NEAR for failed_at in self._failed_at)
        limit = max(MIN_UNCHECKED, MAX_UNCHECKED >> num_failures)
        *outer, top = state.syntax.stack
        if top.mode is Mode.STRING and outer[-1].mode in CODE_MODES:
            limit = MAX_STRING
        return count - self._last_due >= limit

    def _is_inside_word(self, count: int) -> bool:
        """Returns whether what follows may belong to the last word; after the name of an argument, a colon does."""
        syntax = self.states[count].syntax
        if not (syntax.pending or syntax.previous)[-1:].isalnum():
            return False
        following = self._constraint.token_bytes[self._tokens[count]][:1] if count < self.num_tokens else b"a"
        if syntax.stack[-1].mode in (*CODE_MODES, Mode.MATH_CALL):
            return not following.isspace()
        return following.isalnum() or following >= b"\x80"

    def _add(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._last_due = pending.num_tokens

    def check_end(self, source: str) -> None:
        """Starts the check of a complete output."""
        if self._check is not None and not self.has_given_up:
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
        self._num_steps_back = self._num_steps_back + 1 if self.num_tokens < self._last_dead_end else 1
        self._last_dead_end = self.num_tokens
        may_step = self._num_steps_back <= MAX_STEPS_BACK
        return self._target(PrefixCheck(False, self.states[-1].length), self.num_tokens, may_step)

    def _is_decided(self, check: PrefixCheck, pending: _Pending) -> bool:
        """Returns whether an error stays whatever follows."""
        if pending.is_final or not check.is_incomplete or _is_closed(self.states[pending.num_tokens]):
            return True
        # what compiled before fails because of what follows, such as the arguments of a function that is defined there
        is_new = check.position is not None and check.position >= self.states[self._passed[-1]].length
        if check.position is not None and is_new and self._has_ended(check.position, pending.num_tokens):
            return True
        return pending.num_tokens - self._passed[-1] > MAX_OPEN

    def _has_ended(self, position: int, num_tokens: int) -> bool:
        """Returns whether what was open before a character, or the argument with it, has ended in the first tokens."""
        start = self._num_tokens_before(position)
        depth = len(self.states[start].syntax.stack)
        is_argument = self.states[start].syntax.stack[-1].mode is Mode.PAREN
        for count in range(start + 1, num_tokens + 1):
            stack = self.states[count].syntax.stack
            is_comma = is_argument and b"," in self._constraint.token_bytes[self._tokens[count - 1]]
            if len(stack) < depth or (is_comma and len(stack) == depth and not stack[-1].number):
                return True
        return False

    def _target(self, check: PrefixCheck, failed_at: int, is_local: bool = True) -> int | None:
        """Returns how many tokens of an output that failed are kept; None when it is given up.

        Args:
            check: what failed.
            failed_at: number of tokens that it read.
            is_local: whether another token may do in the position of the error.
        """
        self._failed_at.append(failed_at)
        is_spent = self.num_discarded > max(MIN_DISCARDED, self.num_tokens)
        if self.has_given_up or is_spent or failed_at <= self._floor:
            return self._give_up()
        if check.position is not None:
            error = min(self._num_tokens_before(check.position), failed_at - 1)
            self._local_failures[error] += 1
            if is_local and self._local_failures[error] <= MAX_LOCAL:
                return max(error, self._floor)
        start = self._passed[-1] if check.position is None else self._construct_start(check.position)
        start = min(start, failed_at - 1)
        self._failures[start] += 1
        num_failures = self._failures[start]
        if num_failures > MAX_FAILURES:
            return self._give_up()
        if num_failures > MAX_ALTERNATIVES:
            start = min(start, self._passed[-min(len(self._passed), num_failures - MAX_ALTERNATIVES)])
        return max(start, self._floor)

    def _give_up(self) -> int | None:
        """Ends all checks; returns the number of tokens to go back to, after which there is text without code."""
        had_given_up, self.has_given_up = self.has_given_up, True
        self._pending.clear()
        closed = (count for count in reversed(self._passed) if _is_closed(self.states[count]))
        start = max(next(closed, 0), self._floor)
        if had_given_up or not _is_closed(self.states[start]) or start == self.num_tokens:
            return None
        self._has_text_only = True
        return start

    @property
    def _floor(self) -> int:
        """Number of tokens behind which it does not go back."""
        return self.confirmed if self._is_streamed else 0

    def _num_tokens_before(self, position: int) -> int:
        """Returns the number of tokens before the one with a character."""
        return bisect_right(self.states, position, key=lambda state: state.length) - 1

    def _construct_start(self, position: int) -> int:
        """Returns the number of tokens before the code with a character."""
        count = self._num_tokens_before(position)
        stack = self.states[count].syntax.stack
        while count and (stack[-1].mode not in MARKUP_MODES or len(self.states[count].syntax.stack) > len(stack)):
            count -= 1
            if len(self.states[count].syntax.stack) < len(stack):
                stack = self.states[count].syntax.stack
        return count

    def truncate(self, num_tokens: int) -> None:
        """Goes back to a number of tokens."""
        self.num_discarded += self.num_tokens - num_tokens
        del self.states[num_tokens + 1 :]
        self._conflicts = [count for count in self._conflicts if count < num_tokens]
        self._excluded = {count: tokens for count, tokens in self._excluded.items() if count <= num_tokens}
        self._text_only = {count for count in self._text_only if count <= num_tokens}
        self._queued = (0, [])
        self._passed = [count for count in self._passed if count <= num_tokens] or [0]
        self._pending = deque(pending for pending in self._pending if pending.num_tokens <= num_tokens)
        self._last_due = self._pending[-1].num_tokens if self._pending else self._passed[-1]
        self.confirmed = min(self.confirmed, num_tokens)

    def exclude(self, token: int, is_stalled: bool = False) -> None:
        """Excludes a token here, after which the output could not be continued.

        Args:
            token: the token.
            is_stalled: whether there was no text after it.
        """
        self.num_rollbacks += 1
        self._excluded.setdefault(self.num_tokens, set()).add(token)
        if self._failures[self.num_tokens] == MAX_ALTERNATIVES:
            self._text_only.add(self.num_tokens)
        is_code = b"#" in self._constraint.token_bytes[token] and not self._may_only_be_text
        if not is_code or is_stalled:
            self._queue_next_line()


def is_repeating(tokens: Sequence[int]) -> bool:
    """Returns whether the last tokens are a short sequence again and again.

    >>> is_repeating([7, *[1, 2] * 16]), is_repeating([1, 2] * 15)
    (True, False)
    """
    for period in range(1, min(MAX_PERIOD, len(tokens) // MAX_REPEATS) + 1):
        length = max(period * MAX_REPEATS, MIN_REPEATED_TOKENS)
        last = tokens[-length:]
        if len(last) == length and last[period:] == last[:-period]:
            return True
    return False


def _is_closed(state: OutputState) -> bool:
    """Returns whether no code is open."""
    return all(frame.mode in MARKUP_MODES for frame in state.syntax.stack)
