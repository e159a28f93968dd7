"""The syntax of a Typst source while it is being written: what is open, and what closes it.

A `SyntaxState` is what is known of a prefix. `advance` reads more text, a piece at a time; `closers` returns the text
that closes all that is open, so that the source so far can be parsed. The state follows the delimiters, and in code
also whether an operator is missing; whether what is between them makes sense is left to the compiler. It was written
after the lexer and the parser of Typst 0.15 (``typst-syntax``), and accepts what they accept.

The modes form a stack. What opens one is on the left, what ends it on the right::

    document, [ content ]      text with markup
      * strong *, _ emph _     end before a blank line, else the source is invalid
      = heading                ends with its line, or before a <label>
      - item, + item, 1. item  ends at a line that is not indented more than its marker
      / term :                 becomes an item; invalid at the end of its line
      @reference               may continue with [ content ]
      https://link             brackets in it must be balanced
      $ math $                 f( math call ), ( group ), which need not be closed outside a call
      # expression             ends where no call or field follows; see `Phase`
    ( code ), { code }         also inside of expressions; in them [ content ], $ math $
    "string", `raw`, ```raw```, // comment, /* comment */, <label>

States are immutable and compare equal when they accept the same continuations.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

MAX_DEPTH = 256  # of the parser: deeper nesting is an error
STATEMENTS = frozenset({"let", "set", "show", "import", "include", "return"})
END_OF_EXPRESSION = ";"  # as a piece
FIELD = "."  # as the context of its name
OPERATORS = frozenset({"and", "or", "not", "in"})
AFTER_OPERAND = OPERATORS | {"if", "else", "as"}  # keywords
KEYWORDS = STATEMENTS | AFTER_OPERAND | {"context", "for", "while", "break", "continue"}
_NEWLINES = "\n\v\f\r\x85\u2028\u2029"
_SPACES = re.compile(rf"[ \t{_NEWLINES}]+")
_NEWLINE = re.compile(rf"\r\n|[{_NEWLINES}]")
_TEXT = re.compile(rf"(?:[^\\{_NEWLINES}#*_$`<@/\[\]:h]|h(?=[^t]))+")
_MARKER = re.compile(r"=+|[-+/]|\d+\.?")
_IDENTIFIER = re.compile(r"[^\W\d][\w-]*")
_NUMBER = re.compile(r"\.?[0-9](?:[0-9A-Za-z%]|\.(?![^\W\d]|\.))*")
_MATH_IDENTIFIER = re.compile(r"[^\W\d_][^\W_]*")
_MATH_FIELD = re.compile(r"\.[^\W\d_][^\W_]*")
_BACKTICKS = re.compile("`+")
_STRING_END = re.compile(r'["\\]')
_COMMENT_DELIMITER = re.compile(r"[*/]")
_LABEL = re.compile(r"[\w.:-]+")
_LABEL_START = re.compile(r"[\w-]")
_LINK = re.compile(r"[\w!#$%&*+,\-./:;=?@~']+", re.ASCII)
_OPERATOR = re.compile(r"!=|[-+*/=<>:,]+|\.")
_ELSE = re.compile(r"[ \t]*else(?![\w-])")
_UNICODE_ESCAPE = re.compile(r"\\u\{[0-9A-Za-z]*")
_LINKS = ("http://", "https://")


class Mode(Enum):
    """What a part of the source is; see the module."""

    DOCUMENT = auto()
    CONTENT = auto()
    STRONG = auto()
    EMPH = auto()
    HEADING = auto()
    ITEM = auto()
    TERM = auto()
    REFERENCE = auto()
    LINK = auto()
    LABEL = auto()
    MATH = auto()
    MATH_GROUP = auto()
    MATH_CALL = auto()
    EXPRESSION = auto()
    PAREN = auto()
    BLOCK = auto()
    STRING = auto()
    RAW = auto()
    LINE_COMMENT = auto()
    BLOCK_COMMENT = auto()


class Phase(Enum):
    """How far an expression after ``#`` is."""

    START = auto()  # nothing of it yet
    CONTEXT = auto()  # after the keyword: its operand follows
    OPERAND = auto()  # complete, unless a call or a field follows directly
    SET = auto()  # after the keyword: the function that is set follows
    ARGUMENTS = auto()  # after that function: a field of it or its arguments follow directly
    SHOW = auto()  # after the keyword: what the rule applies to follows
    STATEMENT = auto()  # ends with its line, or at a semicolon
    IF = auto()  # in the condition; the body follows
    LOOP = auto()  # in the head of `for` or `while`; the body follows
    AFTER_IF = auto()  # `else` may follow
    ELSE = auto()  # the body, or another condition, follows


class Frame(NamedTuple):
    """An open part of the source.

    Attributes:
        mode: what it is.
        value: the column of an item's marker, the number of backticks, the brackets of a link, the phase of an
            expression; in math, ``operand`` after an operator, ``callable`` directly after an identifier.
        number: square brackets of plain text that are open in markup; backticks that may close raw text; the depth of
            a comment; in code, whether an operand is complete (1), in the head of `if` or a loop also with a space
            after it (2).
        name: of the argument, variable or function that brackets in code belong to.
    """

    mode: Mode
    value: Any = None
    number: int = 0
    name: str = ""


class SyntaxState(NamedTuple):
    """What is known of the source so far.

    Attributes:
        stack: the open parts, the innermost last.
        pending: the last characters, which depend on what follows.
        previous: the character before them; empty at the start.
        column: its distance from the start of the line.
        newlines: newlines in the white space that ends here, up to 2.
        after_newline: whether a newline, and perhaps comments, are all since the last token.
        after_blank_line: likewise with a blank line.
        at_start: whether a heading or an item may start here.
        name: the name in code that a bracket here would belong to; a period where that of a field follows.
    """

    stack: tuple[Frame, ...] = (Frame(Mode.DOCUMENT),)
    pending: str = ""
    previous: str = ""
    column: int = 0
    newlines: int = 0
    after_newline: bool = False
    after_blank_line: bool = False
    at_start: bool = True
    name: str = ""


START = SyntaxState()


class PieceKind(Enum):
    """What a piece of the source is to a reader."""

    TEXT = auto()  # visible text
    MARK = auto()  # markup that starts or ends something, and is not visible itself
    BREAK = auto()  # the end of a content block, an item, a heading, raw text, or (with a quote as text) a string
    STRING = auto()  # text of a string
    MATH = auto()  # text of a formula
    RAW = auto()  # raw text
    CODE = auto()  # names, numbers and operators; `END_OF_EXPRESSION`


class Piece(NamedTuple):
    """A piece of the source.

    Attributes:
        kind: what it is.
        text: its characters; escapes are resolved.
        context: where it is: ``heading``, ``math``, ``raw``, the name of the argument, variable or function whose
            content or string it is, ``#`` for the first name of an expression, ``#set`` and ``#show`` for the one
            after these, ``.`` for that of a field, or empty for other text. Of nested names, it is the outermost and
            the innermost: ``figure > caption``.
    """

    kind: PieceKind
    text: str
    context: str = ""


def advance(state: SyntaxState, text: str) -> SyntaxState | None:
    """Returns the state after more text; None when no continuation can make the source valid.

    >>> advance(START, "= Rain ]") is None
    True
    """
    scanner = _Scanner(state, state.pending + text, final=False)
    try:
        scanner.run()
    except _InvalidError:
        return None
    return scanner.state()


def read_pieces(state: SyntaxState, text: str) -> tuple[SyntaxState, list[Piece]] | None:
    """Returns the state after more text, as `advance` does, and the pieces that became certain by it.

    >>> state, pieces = read_pieces(START, "= Rain\\n#text(fill: red)[in May] ")
    >>> [(piece.text, piece.context) for piece in pieces if piece.kind is PieceKind.TEXT]
    [(' ', 'heading'), ('Rain', 'heading'), ('\\n', 'heading'), ('in May', 'text'), (' ', '')]
    """
    scanner = _Scanner(state, state.pending + text, final=False)
    scanner.pieces = []
    try:
        scanner.run()
    except _InvalidError:
        return None
    return scanner.state(), scanner.pieces


def context(stack: Sequence[Frame]) -> str:
    """Returns the context of text in some frames, from the outermost and the innermost of them; see `Piece`."""
    inner = next((name for frame in reversed(stack) if (name := _text_context(frame)) is not None), "")
    outer = next((frame.name for frame in stack if frame.name), "")
    return f"{outer} > {inner}" if outer and inner and outer != inner else inner


def _text_context(frame: Frame) -> str | None:
    if frame.mode is Mode.HEADING:
        return "heading"
    if frame.mode in _MATH:
        return "math"
    return frame.name if frame.mode in (Mode.CONTENT, Mode.STRING) else None


def closers(state: SyntaxState) -> str:
    r"""Returns the text that closes all that is open.

    >>> closers(advance(START, "#text(size: 12pt)[Some *strong"))
    '*]'
    """
    scanner = _Scanner(state, state.pending, final=True)
    try:
        scanner.run()
    except _InvalidError:
        return ""
    return scanner.closers()


def may_end(state: SyntaxState) -> bool:
    """Returns whether nothing is open, so that the source may end here."""
    return not closers(state)


class _InvalidError(Exception):
    """The source can't become valid."""


class _IncompleteError(Exception):
    """What comes next depends on text that is still to come."""


MARKUP_MODES = {Mode.DOCUMENT, Mode.CONTENT, Mode.STRONG, Mode.EMPH, Mode.HEADING, Mode.ITEM, Mode.TERM}
_MATH = {Mode.MATH, Mode.MATH_GROUP, Mode.MATH_CALL}
_MARKS = {Mode.STRONG: "*", Mode.EMPH: "_"}
_OPENERS = {"(": Mode.PAREN, "[": Mode.CONTENT, "{": Mode.BLOCK, "$": Mode.MATH, '"': Mode.STRING}
_WITHOUT_NAME = {Mode.EXPRESSION, Mode.LABEL, Mode.REFERENCE, Mode.LINK, Mode.HEADING, Mode.ITEM, Mode.TERM}
_CODE_OPENERS = {Mode.PAREN: "(", Mode.BLOCK: "{", Mode.CONTENT: "[", Mode.MATH: "$", Mode.STRING: '"'}
CODE_MODES = {Mode.EXPRESSION, Mode.PAREN, Mode.BLOCK}
_STRING_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_CLOSED = {")": Mode.PAREN, "}": Mode.BLOCK}
_CLOSING_BRACKETS = str.maketrans("([", ")]")


class _Scanner:
    """Reads text from a state on.

    Args:
        state: where it starts.
        text: what to read.
        final: whether the source ends with the text; else the scanner stops where it depends on what follows.
    """

    def __init__(self, state: SyntaxState, text: str, final: bool) -> None:
        self.text = text
        self.final = final
        self.index = 0
        stack, _, self.previous, self.column, self.newlines = state[:5]
        self.after_newline, self.after_blank_line, self.at_start, self.name = state[5:]
        self.pieces: list[Piece] | None = None
        self.stack = list(stack)
        self.dangling = ""  # what has to follow the end of the text before anything is closed

    def run(self) -> None:
        """Reads all that is certain."""
        try:
            while self.index < len(self.text):
                mode = self.stack[-1].mode
                if mode in MARKUP_MODES:
                    self.markup()
                elif mode in _MATH:
                    self.math()
                else:
                    _READERS[mode](self)
                if len(self.stack) > MAX_DEPTH:
                    raise _InvalidError
        except _IncompleteError:
            pass

    def state(self) -> SyntaxState:
        return SyntaxState(
            tuple(self.stack), self.text[self.index :], self.previous, self.column,
            self.newlines, self.after_newline, self.after_blank_line, self.at_start, self.name,
        )  # fmt: skip

    # Reading

    def peek(self, offset: int = 1) -> str:
        """Returns a character ahead; empty after the end of the source."""
        index = self.index + offset
        if index < len(self.text):
            return self.text[index]
        if not self.final:
            raise _IncompleteError
        return ""

    def match(self, pattern: re.Pattern[str], offset: int = 0) -> str:
        """Returns what matches here, or at an offset, if its end is known."""
        match = pattern.match(self.text, self.index + offset)
        if match is None:
            return ""
        if match.end() == len(self.text) and not self.final:
            raise _IncompleteError
        return match[0]

    def read(self, count: int) -> None:
        """Moves on by a number of characters."""
        text = self.text[self.index : self.index + count]
        if not text:
            return
        self.index += len(text)
        self.previous = text[-1]
        line = max(map(text.rfind, _NEWLINES))
        self.column = len(text) - line - 1 if line >= 0 else self.column + len(text)

    def read_until(self, pattern: re.Pattern[str]) -> bool:
        """Reads up to what matches; returns whether that is here."""
        match = pattern.search(self.text, self.index)
        end = match.start() if match else len(self.text)
        self.read(end - self.index)
        return match is not None

    def push(self, mode: Mode, value: object = None, length: int = 1) -> None:
        if mode in _CODE_OPENERS and self.stack[-1].mode in CODE_MODES:
            self.emit(PieceKind.CODE, _CODE_OPENERS[mode])
            self.set_operand(True)
        self.read(length)
        name = "" if mode in _WITHOUT_NAME else self.name or self.stack[-1].name
        self.stack.append(Frame(mode, value, 0, name))
        self.name = ""
        if mode is Mode.CONTENT:
            self.start_markup(at_start=True)

    def pop(self) -> None:
        """Leaves the innermost frame; what follows may belong to the same name."""
        self.name = self.stack.pop().name

    def emit(self, kind: PieceKind, text: str, context: str | None = None) -> None:
        """Notes a piece of the source, if pieces were asked for."""
        if self.pieces is not None:
            self.pieces.append(Piece(kind, text, self.context() if context is None else context))

    def context(self) -> str:
        """Returns the context of text here; see `Piece`."""
        return context(self.stack)

    def name_code(self, text: str) -> None:
        """Reads a token of code: a bracket after it belongs to a name, also after ``name:`` or ``name =``."""
        context = None
        if _IDENTIFIER.match(text):
            context = FIELD if self.name == FIELD else None
            self.name = text
        elif text == "." and (_is_wordy(self.previous) or self.previous in tuple('_-)]}"`$')):
            self.name = FIELD
        elif text.strip(" \t") and text not in (":", "="):
            self.name = ""
        self.emit(PieceKind.CODE, text, context)
        self.read(len(text))

    def start_markup(self, at_start: bool) -> None:
        self.newlines, self.after_newline, self.after_blank_line, self.at_start = 0, False, False, at_start

    def set(self, value: object, number: int = 0) -> None:
        """Changes the value of the innermost frame."""
        self.stack[-1] = self.stack[-1]._replace(value=value, number=number)

    @property
    def needs_operators(self) -> bool:
        """Whether operands need an operator between them: in brackets and in a statement of code."""
        return self.stack[-1].mode in (Mode.PAREN, Mode.BLOCK) or self.stack[-1].value is Phase.STATEMENT

    @property
    def has_operand(self) -> bool:
        """Whether an operand is complete, so that no other may follow directly."""
        return self.needs_operators and self.stack[-1].number > 0

    def set_operand(self, is_complete: bool) -> None:
        if self.needs_operators:
            self.stack[-1] = self.stack[-1]._replace(number=int(is_complete))

    def begin_operand(self) -> None:
        if self.has_operand:
            raise _InvalidError  # a comma, an operator or a newline is missing

    # Markup

    def markup(self) -> None:
        character = self.text[self.index]
        if spaces := _SPACES.match(self.text, self.index):
            self.space(spaces[0])
            return
        if character == "/" and self.comment():
            return
        self.end_lines()
        if self.at_start and self.marker():
            return
        top = self.stack[-1]
        if character == "\\":
            self.escape()
        elif character in "*_":
            self.mark(character)
        elif character == "#":
            self.hash()
        elif character == "`":
            self.raw()
        elif character == "$":
            self.emit(PieceKind.MARK, "$")
            self.push(Mode.MATH)
        elif character == "[":
            self.emit(PieceKind.TEXT, "[")
            self.stack[-1] = top._replace(number=top.number + 1)
            self.read(1)
        elif character == "]":
            self.close_content()
        elif character == "<" and _LABEL_START.match(self.peek()):
            if top.mode is Mode.HEADING:
                self.stack.pop()
            self.emit(PieceKind.MARK, "<")
            self.push(Mode.LABEL)
        elif character == "@" and _LABEL_START.match(self.peek()):
            self.emit(PieceKind.MARK, "@")
            self.push(Mode.REFERENCE)
        elif character == "h" and (link := self.link_prefix()):
            self.emit(PieceKind.TEXT, link)
            self.push(Mode.LINK, "", len(link))
        elif character == ":" and top.mode is Mode.TERM:
            self.emit(PieceKind.TEXT, ":")
            self.read(1)
            self.end_term()
            return
        else:
            match = _TEXT.match(self.text, self.index)
            text = match[0] if match else character
            self.emit(PieceKind.TEXT, text)
            self.read(len(text))
        self.newlines, self.at_start = 0, False

    def end_term(self) -> None:
        """Continues after the colon of a term, with its description."""
        self.stack[-1] = self.stack[-1]._replace(mode=Mode.ITEM)
        self.start_markup(at_start=True)

    def space(self, spaces: str) -> None:
        newlines = len(_NEWLINE.findall(spaces)) - (self.previous == "\r" and spaces[0] == "\n")
        self.newlines = min(self.newlines + newlines, 2)
        self.after_newline |= newlines > 0
        self.after_blank_line |= self.newlines == 2
        if self.after_blank_line and next(f.mode for f in reversed(self.stack) if f.mode is not Mode.HEADING) in _MARKS:
            raise _InvalidError
        if newlines and self.stack[-1].mode is Mode.TERM:
            raise _InvalidError
        self.emit(PieceKind.TEXT, spaces)
        self.read(len(spaces))

    def comment(self) -> bool:
        """Reads the start of a comment, if there is one."""
        kind = self.peek()
        if kind not in ("/", "*"):
            return False
        self.newlines = 0
        self.emit(PieceKind.MARK, "/")
        self.stack.append(Frame(Mode.LINE_COMMENT) if kind == "/" else Frame(Mode.BLOCK_COMMENT, None, 1))
        self.read(2)
        return True

    def end_lines(self) -> None:
        """Ends what ends with a line, or at the column at which the next one starts."""
        if not self.after_newline:
            return
        while True:
            top = self.stack[-1]
            if top.mode in _MARKS and self.after_blank_line:
                raise _InvalidError
            if top.mode is not Mode.HEADING and not (top.mode is Mode.ITEM and self.column <= top.value):
                break
            self.emit(PieceKind.BREAK, "")
            self.stack.pop()
        self.start_markup(at_start=True)

    def marker(self) -> bool:
        """Reads the marker of a heading or an item, if there is one."""
        marker = self.match(_MARKER)
        if not marker or (marker[0].isdigit() and marker[-1] != "."):
            return False
        following = self.peek(len(marker))
        ends_here = not following or following.isspace()
        if not ends_here and (following != "/" or self.peek(len(marker) + 1) not in ("/", "*")):
            return False  # no space and no comment follows
        column = self.column
        self.emit(PieceKind.BREAK, "")
        self.emit(PieceKind.MARK, marker)
        if marker[0] == "=":
            self.push(Mode.HEADING, None, len(marker))
        else:
            self.push(Mode.TERM if marker == "/" else Mode.ITEM, column, len(marker))
        self.start_markup(at_start=marker[0] not in "=/")
        return True

    def mark(self, mark: str) -> None:
        """Reads a star or an underscore, which opens or closes something unless it is inside a word."""
        following = self.peek()
        if mark == "*" and following == "/":
            raise _InvalidError
        is_visible = _is_wordy(self.previous) and _is_wordy(following)
        self.emit(PieceKind.TEXT if is_visible else PieceKind.MARK, mark)
        if not is_visible:
            if _MARKS.get(self.stack[-1].mode) == mark:
                self.stack.pop()
            else:
                self.stack.append(Frame(Mode.STRONG if mark == "*" else Mode.EMPH))
        self.read(1)

    def hash(self) -> None:
        if not self.previous and self.peek() == "!":
            self.push(Mode.LINE_COMMENT)
        else:
            self.emit(PieceKind.MARK, "#")
            self.push(Mode.EXPRESSION, Phase.START)

    def escape(self, kind: PieceKind = PieceKind.TEXT) -> None:
        following = self.peek()
        if following == "u" and self.peek(2) == "{":
            match = _UNICODE_ESCAPE.match(self.text, self.index)
            assert match is not None
            end = self.peek(len(match[0]))
            character = _unicode_character(match[0][3:])
            if end not in ("}", "") or (end and not character):
                raise _InvalidError
            self.dangling = "" if end else "}"
            self.emit(kind, character)
            self.read(len(match[0]) + 1)
        else:
            self.dangling = "" if following else " "
            self.emit(kind, "\n" if following.isspace() else following)
            self.read(1 if not following or following.isspace() else 2)

    def raw(self) -> None:
        run = self.match(_BACKTICKS)
        self.emit(PieceKind.MARK, "`")
        if len(run) == 2:
            self.read(2)
        else:
            self.push(Mode.RAW, len(run), len(run))

    def link_prefix(self) -> str:
        """Returns what starts a link here; empty for other text."""
        rest = self.text[self.index : self.index + 8]
        if link := next((link for link in _LINKS if rest.startswith(link)), ""):
            return link
        if not self.final and any(link.startswith(rest) for link in _LINKS):
            raise _IncompleteError
        return ""

    def close_content(self) -> None:
        while True:
            top = self.stack[-1]
            if top.number:
                self.emit(PieceKind.TEXT, "]")
                self.stack[-1] = top._replace(number=top.number - 1)
            elif top.mode in (Mode.HEADING, Mode.ITEM):
                self.stack.pop()
                continue
            elif top.mode is Mode.CONTENT:
                self.emit(PieceKind.BREAK, "")
                self.pop()
            else:
                raise _InvalidError
            self.read(1)
            return

    def reference(self) -> None:
        if label := _LABEL.match(self.text, self.index):
            self.read(len(label[0]))
            return
        self.stack.pop()
        if self.text[self.index] == "[" and self.previous not in ".:":
            self.push(Mode.CONTENT)

    def label(self) -> None:
        if label := _LABEL.match(self.text, self.index):
            self.read(len(label[0]))
        elif self.text[self.index] == ">":
            self.stack.pop()
            self.read(1)
        else:
            raise _InvalidError

    def link(self) -> None:
        top = self.stack[-1]
        if link := _LINK.match(self.text, self.index):
            # Punctuation at its end is not part of the link, and a colon there ends a term.
            word = link[0].rstrip("!,.:;?'")
            self.set(top.value, ":" in link[0][len(word) :] or (not word and bool(top.number)))
            self.emit(PieceKind.TEXT, link[0])
            self.read(len(link[0]))
            return
        brackets, character = str(top.value), self.text[self.index]
        if character in "([":
            self.set(brackets + character)
            self.emit(PieceKind.TEXT, character)
            self.read(1)
            return
        closes = brackets[-1:] + character in ("()", "[]")
        brackets = brackets[:-1] if character in ")]" else brackets
        self.set(brackets)
        if closes:
            self.emit(PieceKind.TEXT, character)
            self.read(1)
        elif brackets:
            raise _InvalidError
        else:
            self.stack.pop()
            if top.number and self.stack[-1].mode is Mode.TERM:
                self.end_term()

    # Math

    def math(self) -> None:
        character, top = self.text[self.index], self.stack[-1]
        if character.isspace():
            self.emit(PieceKind.MATH, " ")
            self.set(top.value if top.value == "operand" else None)
            self.read(1)
        elif character == "/":
            if not self.comment():
                self.emit(PieceKind.MATH, character)
                self.set("operand")
                self.read(1)
        elif character == "*" and self.peek() == "/":
            raise _InvalidError
        elif character in "^_√∛∜":
            self.emit(PieceKind.MATH, character)
            self.set("operand")
            self.read(1)
        elif character == "$":
            self.close_math()
        elif character == "|" and self.peek() == "]":
            self.close_group(2)
        elif character != "|" and _is_closing(character):
            self.close_group(1)
        else:
            self.math_operand(character, top)

    def math_operand(self, character: str, top: Frame) -> None:
        if character == "\\":
            self.escape(PieceKind.MATH)
            self.set(None)
        elif identifier := self.match(_MATH_IDENTIFIER):
            while len(identifier) > 1 and self.peek(len(identifier)) == ".":
                self.peek(len(identifier) + 1)
                if not (field := self.match(_MATH_FIELD, len(identifier))):
                    break
                identifier += field
            self.set("callable" if len(identifier) > 1 else None)
            self.emit(PieceKind.MATH, identifier)
            self.read(len(identifier))
        else:
            self.set(None)
            if character == "#":
                self.emit(PieceKind.MARK, "#")
                self.push(Mode.EXPRESSION, Phase.START)
            elif character == '"':
                self.push(Mode.STRING)
            elif character == "(" and top.value == "callable":
                self.push(Mode.MATH_CALL)
            elif unicodedata.category(character) == "Ps":
                self.push(Mode.MATH_GROUP)
            else:
                self.emit(PieceKind.MATH, character)
                self.read(1)

    def close_math(self) -> None:
        while self.stack[-1].mode is Mode.MATH_GROUP:
            self.stack.pop()
        if self.stack[-1].mode is Mode.MATH_CALL:
            raise _InvalidError
        self.emit(PieceKind.MARK, "$")
        self.pop()
        self.read(1)

    def close_group(self, length: int) -> None:
        top, character = self.stack[-1], self.text[self.index]
        closes = top.mode is Mode.MATH_GROUP or (top.mode is Mode.MATH_CALL and character == ")")
        if top.value != "operand" and closes:
            self.stack.pop()
        else:
            self.set(None)
        self.read(length)

    # Code

    def code(self) -> None:
        character, mode = self.text[self.index], self.stack[-1].mode
        if character in _CLOSED:
            if _CLOSED[character] is not mode:
                raise _InvalidError
            self.pop()
            self.emit(PieceKind.CODE, character)
            self.read(1)
        elif character == "]" or (character == ";" and mode is Mode.PAREN):
            raise _InvalidError
        else:
            self.code_token(character)

    def code_token(self, character: str) -> None:
        """Reads a token that means the same in all code."""
        if character in _OPENERS:
            if character == '"':
                self.begin_operand()
            self.push(_OPENERS[character])
        elif character == "`":
            self.set_operand(True)
            self.raw()
        elif character == "<" and _LABEL_START.match(self.peek()):
            self.push(Mode.LABEL)
        elif character == "/" and self.comment():
            pass
        elif character == "*" and self.peek() == "/":
            raise _InvalidError
        else:
            self.word(character)

    def word(self, character: str) -> None:
        """Reads a name, a number, an operator or white space in brackets or a statement of code."""
        if self.has_operand and (name := _IDENTIFIER.match(self.text, self.index)):
            self.keyword(name[0])
        if word := self.match(_IDENTIFIER) or self.match(_NUMBER):
            if word not in KEYWORDS:
                self.begin_operand()
            self.set_operand(word not in KEYWORDS)
            self.name_code(word)
        elif _is_space(character):
            if character in _NEWLINES and self.stack[-1].mode is Mode.BLOCK:
                self.set_operand(False)
            self.name_code(character)
        elif operator := _OPERATOR.match(self.text, self.index):
            self.set_operand(False)
            self.name_code(operator[0])
        elif character == ";" or (character == "!" and not self.peek()):
            self.set_operand(False)
            self.name_code(character)
        else:
            raise _InvalidError

    def keyword(self, start: str) -> None:
        """Refuses what can't become a keyword after an operand."""
        keyword = next((word for word in sorted(AFTER_OPERAND) if word.startswith(start)), None)
        if keyword is None:
            raise _InvalidError
        if self.final and self.index + len(start) == len(self.text) and start not in AFTER_OPERAND:
            self.dangling = f"{keyword[len(start) :]} none"
            self.set_operand(False)

    def expression(self) -> None:
        phase = self.stack[-1].value
        if phase in (Phase.SET, Phase.SHOW):
            self.rule()
        elif phase is Phase.ARGUMENTS:
            self.arguments()
        elif phase is Phase.STATEMENT:
            self.statement()
        elif phase in (Phase.IF, Phase.LOOP):
            self.head()
        elif phase in (Phase.OPERAND, Phase.AFTER_IF):
            self.continuation()
        else:
            self.operand()

    def operand(self) -> None:
        """Reads the first token of an expression, or of what follows `context` or `else`."""
        phase, character = self.stack[-1].value, self.text[self.index]
        if phase is not Phase.START and _is_space(character) and character not in _NEWLINES:
            self.read(1)
        elif phase is not Phase.START and character == "/" and self.comment():
            pass
        elif phase is Phase.ELSE:
            if character in "{[":
                self.set(Phase.OPERAND)
                self.push(_OPENERS[character])
            elif self.match(_IDENTIFIER) == "if":
                self.set(Phase.IF)
                self.read(2)
            else:
                raise _InvalidError
        elif identifier := self.match(_IDENTIFIER):
            self.set(_PHASES.get(identifier, Phase.OPERAND))
            self.name = identifier
            self.emit(PieceKind.CODE, identifier, "#" if phase is Phase.START else "")
            self.read(len(identifier))
        elif number := self.match(_NUMBER):
            self.set(Phase.OPERAND)
            self.emit(PieceKind.CODE, number, "#" if phase is Phase.START else "")
            self.read(len(number))
        elif character in _OPENERS or character in "`<":
            if character == "<" and not _LABEL_START.match(self.peek()):
                raise _InvalidError
            if character == "`":
                self.match(_BACKTICKS)
            if phase is Phase.START:
                self.emit(PieceKind.CODE, character, "#")
            self.set(Phase.OPERAND)
            self.code_token(character)
        else:
            raise _InvalidError

    def continuation(self) -> None:
        """Reads what directly follows an operand: a call or a field; else the expression is over."""
        character = self.text[self.index]
        if character in "([":
            self.set(Phase.OPERAND)
            self.push(_OPENERS[character])
        elif character == "." and re.match(r"[^\W\d]", self.peek()):
            identifier = self.match(_IDENTIFIER, 1)
            if identifier == "_":
                self.end_expression()
                return
            self.set(Phase.OPERAND)
            self.field(identifier)
        elif self.stack[-1].value is Phase.AFTER_IF and (keyword := self.else_keyword()):
            self.set(Phase.ELSE)
            self.name = "else"
            self.read(len(keyword))
        else:
            self.end_expression()

    def field(self, name: str) -> None:
        """Reads a period and the name of a field."""
        self.name = name
        self.emit(PieceKind.CODE, name, FIELD)
        self.read(1 + len(name))

    def end_expression(self) -> None:
        self.emit(PieceKind.CODE, END_OF_EXPRESSION, "")
        self.stack.pop()
        self.name = ""
        if self.text[self.index] == ";":
            self.read(1)
        self.start_markup(at_start=False)

    def else_keyword(self) -> str:
        rest = self.text[self.index :]
        if not self.final and "else".startswith(rest.lstrip(" \t")):
            raise _IncompleteError
        return self.match(_ELSE)

    def rule(self) -> None:
        """Reads the name after `set` or `show`, if there is one."""
        phase, character = self.stack[-1].value, self.text[self.index]
        if _is_space(character) and character not in _NEWLINES:
            self.read(1)
        elif character == "/" and self.comment():
            pass
        elif identifier := self.match(_IDENTIFIER):
            if identifier in KEYWORDS:
                raise _InvalidError
            self.set(Phase.ARGUMENTS if phase is Phase.SET else Phase.STATEMENT, phase is Phase.SHOW)
            self.name = identifier
            self.emit(PieceKind.CODE, identifier, f"#{phase.name.lower()}")
            self.read(len(identifier))
        elif phase is Phase.SHOW and character not in _NEWLINES:
            self.set(Phase.STATEMENT)
        else:
            raise _InvalidError

    def arguments(self) -> None:
        """Reads a field of the function that is set, or the start of its arguments."""
        character = self.text[self.index]
        if character in "([":
            self.set(Phase.STATEMENT)
            self.push(_OPENERS[character])
        elif character == "." and not self.peek():
            self.read(1)
            self.dangling = "x"  # any name
        elif character == "." and (identifier := self.match(_IDENTIFIER, 1)):
            self.field(identifier)
        else:
            raise _InvalidError

    def statement(self) -> None:
        character = self.text[self.index]
        if character in _NEWLINES or character == "]" or character == ";":
            self.end_expression()
        elif character in _CLOSED:
            raise _InvalidError
        else:
            self.code_token(character)

    def head(self) -> None:
        """Reads the condition of `if` or the head of a loop, up to the body."""
        character, top = self.text[self.index], self.stack[-1]
        body = Phase.AFTER_IF if top.value is Phase.IF else Phase.OPERAND
        if character in _NEWLINES or character in ")}];":
            raise _InvalidError
        if character.isspace():
            self.set(top.value, 2 if top.number else 0)
            self.name_code(character)
        elif character == "{" or character == "[":
            is_body = top.number == 2 or (character == "{" and top.number)
            self.set(*((body,) if is_body else (top.value, 1)))
            self.push(_OPENERS[character])
        elif token := self.match(_IDENTIFIER) or self.match(_NUMBER):
            self.set(top.value, token not in OPERATORS)
            self.name_code(token)
        elif character in '("$`':
            self.set(top.value, 1)
            self.code_token(character)
        elif character == "/" and self.comment():
            pass
        elif character == "*" and self.peek() == "/":
            raise _InvalidError
        else:
            is_label = character == "<" and _LABEL_START.match(self.peek())
            self.set(top.value, 1 if is_label else 0)
            if is_label:
                self.push(Mode.LABEL)
            else:
                self.name_code(character)

    # Text without structure

    def string(self) -> None:
        start = self.index
        is_found = self.read_until(_STRING_END)
        self.emit(PieceKind.STRING, self.text[start : self.index])
        if not is_found:
            return
        if self.text[self.index] == '"':
            self.emit(PieceKind.BREAK, '"')
            self.pop()
            self.read(1)
        else:
            following = self.peek()
            self.dangling = "" if following else "\\"
            self.emit(PieceKind.STRING, _STRING_ESCAPES.get(following, following))
            self.read(2)

    def raw_text(self) -> None:
        top = self.stack[-1]
        if top.value > 2 and not top.number and self.previous == "`" and (language := self.match(_IDENTIFIER)):
            self.emit(PieceKind.CODE, language, "")
            self.read(len(language))
            return
        if self.text[self.index] != "`":
            self.stack[-1] = top._replace(number=0)
            start = self.index
            self.read_until(_BACKTICKS)
            self.emit(PieceKind.RAW, self.text[start : self.index], "raw")
            return
        self.stack[-1] = top._replace(number=top.number + 1)
        if top.number + 1 == top.value:
            self.emit(PieceKind.BREAK, "")
            self.pop()
        self.read(1)

    def line_comment(self) -> None:
        if self.read_until(_NEWLINE):
            self.stack.pop()

    def block_comment(self) -> None:
        if not self.read_until(_COMMENT_DELIMITER):
            return
        pair, depth = self.text[self.index] + self.peek(), self.stack[-1].number
        change = {"/*": 1, "*/": -1}.get(pair, 0)
        self.set(None, depth + change)
        self.read(2 if change else 1)
        if depth + change == 0:
            self.stack.pop()

    # Closing

    def closers(self) -> str:
        """Returns the text that closes all that is open, after `run` to the end of the source."""
        before = self.end_comment()
        if self.stack[-1].mode in MARKUP_MODES:
            before += self.continue_item()
            self.end_lines()
        following = ""  # what closes the frames further out
        for depth in range(1, len(self.stack)):
            following = self.closer(depth, following) + following
        dangling = self.dangling if following or self.dangling != " " else ""
        return dangling + before + following if following else dangling

    def end_comment(self) -> str:
        """Ends a comment that ends with its line, and what ends with that line as well."""
        if self.stack[-1].mode is not Mode.LINE_COMMENT:
            return ""
        self.stack.pop()
        if self.stack[-1].value is Phase.STATEMENT:
            self.stack.pop()
        self.column, self.after_newline, self.previous = 0, True, "\n"
        return "\n"

    def continue_item(self) -> str:
        """Returns text that continues an item after a blank line, where that must not end strong text around it."""
        items = [frame.value for frame in self.stack if frame.mode is Mode.ITEM]
        is_marked = any(frame.mode in _MARKS for frame in self.stack)
        if not (self.after_blank_line and items and is_marked):
            return ""
        self.after_newline = self.after_blank_line = False
        return " " * max(0, max(items) + 1 - self.column) + "#none;"

    def closer(self, depth: int, following: str) -> str:
        """Returns what closes a frame.

        Args:
            depth: its index in the stack.
            following: what closes the frames further out.
        """
        frame, is_innermost = self.stack[depth], depth == len(self.stack) - 1
        mode, value = frame.mode, frame.value
        if mode in (Mode.HEADING, Mode.ITEM, Mode.TERM):
            closing = ":" if mode is Mode.TERM else ""
            if self.stack[depth - 1].mode in _MARKS:  # which a mark closes on the next line only
                closing += "/**/\n" if is_innermost and self.after_newline else "\n"
            return closing
        if mode is Mode.CONTENT:
            return "]" * (self.num_brackets(depth) + 1)
        if mode in _MARKS:
            # without a space, the mark would become part of a comment, a label or a reference
            before = "/" if mode is Mode.STRONG else "<@"
            return " " * (is_innermost and self.previous in tuple(before)) + _MARKS[mode]
        if mode in _MATH:
            closing = '""' if value == "operand" else ""
            if mode is Mode.MATH_GROUP and not self.is_in_call(depth):
                return closing
            return closing + ("$" if mode is Mode.MATH else ")")
        if mode is Mode.EXPRESSION:
            if value in (Phase.IF, Phase.LOOP):
                closing = " {}" if frame.number else " none {}"
            else:
                closing = _ENDS.get(value, "") if is_innermost else ""
            return closing + ";" * bool(following)  # without it, what follows could continue the expression
        if mode is Mode.RAW:
            return "`" if value == 1 else "\n" + "`" * value
        if mode is Mode.BLOCK_COMMENT:
            return " " * (self.previous == "/") + "*/" * frame.number
        if mode in (Mode.LINK, Mode.REFERENCE):
            brackets = str(value or "")[::-1].translate(_CLOSING_BRACKETS)
            return brackets + " " * bool(following)
        return {Mode.PAREN: ")", Mode.BLOCK: "}", Mode.STRING: '"', Mode.LABEL: ">"}[mode]

    def num_brackets(self, depth: int) -> int:
        """Returns the number of brackets of plain text that have to be closed before a content block can be."""
        count = self.stack[depth].number
        for frame in self.stack[depth + 1 :]:
            if frame.mode not in (Mode.HEADING, Mode.ITEM):
                break
            count += frame.number
        return count

    def is_in_call(self, depth: int) -> bool:
        """Returns whether a group is in a call within its formula."""
        modes = [frame.mode for frame in self.stack[:depth]]
        return Mode.MATH_CALL in modes[len(modes) - modes[::-1].index(Mode.MATH) :]


_PHASES = {
    **dict.fromkeys(STATEMENTS, Phase.STATEMENT),
    "set": Phase.SET,
    "show": Phase.SHOW,
    "context": Phase.CONTEXT,
    "if": Phase.IF,
    "for": Phase.LOOP,
    "while": Phase.LOOP,
}
_ENDS = {  # of incomplete expressions
    Phase.START: "none",
    Phase.CONTEXT: " none",
    Phase.ELSE: " {}",
    Phase.SET: " text()",
    Phase.ARGUMENTS: "()",
    Phase.SHOW: " []: none",
}
_READERS = {
    Mode.REFERENCE: _Scanner.reference,
    Mode.LINK: _Scanner.link,
    Mode.LABEL: _Scanner.label,
    Mode.EXPRESSION: _Scanner.expression,
    Mode.PAREN: _Scanner.code,
    Mode.BLOCK: _Scanner.code,
    Mode.STRING: _Scanner.string,
    Mode.RAW: _Scanner.raw_text,
    Mode.LINE_COMMENT: _Scanner.line_comment,
    Mode.BLOCK_COMMENT: _Scanner.block_comment,
}


def _is_wordy(character: str) -> bool:
    """Returns whether a mark next to a character can be inside a word; scripts without spaces have no such words."""
    if not character.isalnum():
        return False
    return not unicodedata.name(character, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"))


def _unicode_character(digits: str) -> str:
    code = int(digits, 16) if re.fullmatch(r"[0-9A-Fa-f]{1,8}", digits) else -1
    return chr(code) if 0 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else ""


def _is_space(character: str) -> bool:
    """Returns whether a character is white space in Typst; Python counts some control characters as well."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def _is_closing(character: str) -> bool:
    return unicodedata.category(character) == "Pe"
