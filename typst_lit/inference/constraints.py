"""What a document may become while it is decoded: tokens after which it could not be valid Typst are not sampled."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from typst_lit.typesetting.syntax import START, Mode, SyntaxState, advance, closers

# Where part of a character can be sampled before it is known which one: any character is valid there.
_ANY_CHARACTER = frozenset(
    {Mode.DOCUMENT, Mode.CONTENT, Mode.STRONG, Mode.EMPH, Mode.HEADING, Mode.ITEM, Mode.TERM}
    | {Mode.STRING, Mode.RAW, Mode.LINE_COMMENT, Mode.BLOCK_COMMENT}
)  # fmt: skip
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
    """

    syntax: SyntaxState = START
    pending: bytes = b""


class SyntaxConstraint:
    """Decides which tokens may follow, so that an output can become a valid Typst source.

    Args:
        token_bytes: the bytes of each token.

    Example:
        >>> from typst_lit.model.backbones import PretrainedBackbone
        >>> tokenizer = PretrainedBackbone().load_tokenizer("typst-nano", None, False)
        >>> constraint = SyntaxConstraint(TokenBytes(tokenizer))
        >>> state = constraint.start
        >>> for token in tokenizer("= Rain *and")["input_ids"]:
        ...     state = constraint.advance(state, token)
        >>> constraint.closers(state)
        '*'
    """

    start = OutputState()

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes

    def advance(self, state: OutputState, token: int) -> OutputState | None:
        """Returns the state after a token; None when it must not follow."""
        content = self._token_bytes[token]
        if not content:
            return None
        content = state.pending + content
        text, pending = _split_utf8(content)
        if text is None:
            return None
        syntax = advance(state.syntax, text) if text else state.syntax
        if syntax is None or (pending and syntax.stack[-1].mode not in _ANY_CHARACTER):
            return None
        return OutputState(syntax, pending)

    def closers(self, state: OutputState) -> str:
        """Returns the text that closes all that is open."""
        return closers(state.syntax)


def _split_utf8(content: bytes) -> tuple[str | None, bytes]:
    """Returns the text of complete characters and the bytes of an incomplete last one; None for invalid UTF-8."""
    try:
        return content.decode(), b""
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None, b""
        return content[: error.start].decode(), content[error.start :]
