"""Which tokens may follow while a document is decoded: those after which it can be valid and keep its text contract."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from typst_lit.contract.text_contract import longest
from typst_lit.contract.text_guard import TextGuard, TextState, is_visible
from typst_lit.typesetting.syntax import START, Mode, SyntaxState, advance, read_pieces

# Where part of a character can be sampled before it is known which one: any character is valid there.
_ANY_CHARACTER = frozenset(
    {Mode.DOCUMENT, Mode.CONTENT, Mode.STRONG, Mode.EMPH, Mode.HEADING, Mode.ITEM, Mode.TERM}
    | {Mode.STRING, Mode.RAW, Mode.LINE_COMMENT, Mode.BLOCK_COMMENT}
)  # fmt: skip
_TEXT_ONLY = _ANY_CHARACTER - {Mode.STRING} | {Mode.LINK}
REPLACEMENT_CHARACTER = "\ufffd"


class TokenBytes:
    """The bytes that each token of a tokenizer stands for.

    Args:
        tokenizer: of byte-level BPE, as those of Qwen; with others, tokens that are not whole characters have no bytes.

    Example:
        >>> from typst_lit.model.backbones import PretrainedBackbone
        >>> tokenizer = PretrainedBackbone().load_tokenizer("typst-nano", None, False)
        >>> table = TokenBytes(tokenizer)
        >>> b"".join(table[token] for token in tokenizer("Ärger *im* Café")["input_ids"]).decode()
        'Ärger *im* Café'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._added = tokenizer.get_added_vocab()
        self._bytes: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        """Returns the bytes of a token; none for special tokens and for ids that are not in the vocabulary."""
        if token not in self._bytes:
            self._bytes[token] = self._decode(token)
        return self._bytes[token]

    def _decode(self, token: int) -> bytes:
        if token in self._special:
            return b""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(name, str):
            return b""
        if name in self._added:
            return name.encode()
        table = _byte_level_alphabet()
        if all(character in table for character in name):
            return bytes(table[character] for character in name)
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return b"" if REPLACEMENT_CHARACTER in text else str(text).encode()


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Returns the byte of each character of a byte-level vocabulary: printable Latin-1 stands for itself (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


class OutputState(NamedTuple):
    """What is known of an output so far.

    Attributes:
        syntax: the state of its text.
        pending: the first bytes of a character whose last ones are still to come.
        text: what is known of its visible text; None without a text contract.
        length: number of characters.
        num_code: number of tokens with code: without any, a source always compiles.
        text_length: number of characters up to the last visible letter; 0 without a text contract.
        gaps: lengths of the longest stretches without visible letters before it, the longest first.
    """

    syntax: SyntaxState = START
    pending: bytes = b""
    text: TextState | None = None
    length: int = 0
    num_code: int = 0
    text_length: int = 0
    gaps: tuple[int, ...] = ()

    @property
    def all_gaps(self) -> tuple[int, ...]:
        """The gaps with the one that may not have ended yet."""
        return longest((*self.gaps, self.length - self.text_length))


class OutputConstraint:
    """Decides which tokens may follow, so that an output can become a valid Typst source and keeps a text contract.

    Args:
        tokenizer: of the model.

    Example:
        >>> from typst_lit.model.backbones import PretrainedBackbone
        >>> tokenizer = PretrainedBackbone().load_tokenizer("typst-nano", None, False)
        >>> from typst_lit.typesetting.syntax import closers
        >>> constraint = OutputConstraint(tokenizer)
        >>> state = OutputState()
        >>> for token in tokenizer("= Rain *and")["input_ids"]:
        ...     state = constraint.advance(state, token)
        >>> closers(state.syntax)
        '*'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.token_bytes = TokenBytes(tokenizer)

    def advance(
        self, state: OutputState, token: int, guard: TextGuard | None = None, may_deviate: bool = False
    ) -> OutputState | None:
        """Returns the state after a token; None when it must not follow.

        Args:
            state: the state before it.
            token: its id.
            guard: of the document's text contract; None without one.
            may_deviate: see `TextGuard.read`.
        """
        content = self.token_bytes[token]
        if not content:
            return None
        text, pending = _split_utf8(state.pending + content)
        if text is None:
            return None
        syntax, text_state, has_text = state.syntax, state.text, False
        if text and guard is not None:
            read = read_pieces(syntax, text)
            if read is None:
                return None
            syntax, has_text = read[0], any(map(is_visible, read[1]))
            text_state = guard.read(text_state or TextState(), read[1], may_deviate)
            if text_state is None or not guard.may_continue(text_state, syntax, may_deviate):
                return None
        elif text:
            advanced = advance(syntax, text)
            if advanced is None:
                return None
            syntax = advanced
        if guard is not None and pending and not guard.may_begin(text_state or TextState(), syntax, pending):
            return None
        mode = syntax.stack[-1].mode
        if pending and mode not in _ANY_CHARACTER:
            return None
        has_code = mode not in _TEXT_ONLY or any(mark in content for mark in b"#$@<")
        following = state._replace(
            syntax=syntax,
            pending=pending,
            text=text_state,
            length=state.length + len(text),
            num_code=state.num_code + has_code,
        )
        if has_text:
            return following._replace(text_length=following.length, gaps=state.all_gaps)
        return following

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without the bytes of a character that is not complete."""
        return b"".join(self.token_bytes[token] for token in tokens).decode("utf-8", "ignore")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _split_utf8(content: bytes) -> tuple[str | None, bytes]:
    """Returns the text of complete characters and the bytes of an incomplete last one; None for invalid UTF-8."""
    try:
        return content.decode(), b""
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None, b""
        return content[: error.start].decode(), content[error.start :]
