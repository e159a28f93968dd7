"""Random chapters of reports: their contents, and how a record holds them as plain text."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.nano.words import Writer


class Heading(NamedTuple):
    text: str


class Paragraph(NamedTuple):
    text: str


class Listing(NamedTuple):
    items: list[str]
    ordered: bool


class Table(NamedTuple):
    caption: str
    rows: list[list[str]]  # the first one is the header


class Figure(NamedTuple):
    caption: str
    path: str


class Equation(NamedTuple):
    formula: str


class Quote(NamedTuple):
    text: str
    author: str


class Code(NamedTuple):
    lines: list[str]


COPY_OFFICE = "Copy Office"  # the department of copy tasks
Block = Heading | Paragraph | Listing | Table | Figure | Equation | Quote | Code


@dataclass(frozen=True)
class Chapter:
    """A chapter, with the fields of its record that describe the report."""

    starting_page: int
    academic_year: str
    department: str
    project_title: str
    number: int
    title: str
    blocks: list[Block]

    @property
    def record(self) -> dict[str, str | int]:
        """The fields of the record, as `ReportPrompt` expects them."""
        parts = [f"Chapter {self.number}", self.title, *map(plain_text, self.blocks)]
        return {
            "starting_page": self.starting_page,
            "academic_year": self.academic_year,
            "department": self.department,
            "project_title": self.project_title,
            "contents_txt": "\n\n".join(parts),
        }


def plain_text(block: Block) -> str:
    """Returns a block as plain text, as a record contains it."""
    match block:
        case Heading(text) | Paragraph(text):
            return text
        case Listing(items, ordered):
            return "\n".join(f"{number}. {item}" if ordered else f"- {item}" for number, item in enumerate(items, 1))
        case Table(caption, rows):
            return "\n".join([*(" | ".join(row) for row in rows), f"^ {caption}"])
        case Figure(caption, path):
            return f"! {caption} ({path})"
        case Equation(formula):
            return f"$ {formula} $"
        case Quote(text, author):
            return f"> {text}\n> {author}"
        case Code(lines):
            return "\n".join(["```", *lines, "```"])


def parse_block(text: str) -> Block:
    """Parses a block of a record's text. A line without final punctuation is a heading."""
    lines = text.split("\n")
    if text.startswith("- "):
        return Listing([line.removeprefix("- ") for line in lines], ordered=False)
    if re.match(r"1\. ", text):
        return Listing([line.split(". ", 1)[1] for line in lines], ordered=True)
    if lines[-1].startswith("^ "):
        return Table(lines[-1].removeprefix("^ "), [line.split(" | ") for line in lines[:-1]])
    if match := re.fullmatch(r"! (.*) \((\S+)\)", text):
        return Figure(match[1], match[2])
    if text.startswith("$ "):
        return Equation(text.removeprefix("$ ").removesuffix(" $"))
    if text.startswith("> "):
        return Quote(lines[0].removeprefix("> "), lines[1].removeprefix("> "))
    if text.startswith("```"):
        return Code(lines[1:-1])
    return Paragraph(text) if re.search(r"[.?!]$", text) else Heading(text)


def parse_chapter(fields: dict[str, str | int]) -> Chapter:
    """Parses a chapter from its record."""
    number, title, *blocks = str(fields["contents_txt"]).split("\n\n")
    return Chapter(
        starting_page=int(fields["starting_page"]),
        academic_year=str(fields["academic_year"]),
        department=str(fields["department"]),
        project_title=str(fields["project_title"]),
        number=int(number.removeprefix("Chapter ")),
        title=title,
        blocks=[parse_block(block) for block in blocks],
    )


def make_chapter(writer: Writer, department: str) -> Chapter:
    """Returns a random chapter."""
    rng = writer.rng
    blocks: list[Block] = [paragraph(writer)]
    for _ in range(rng.choice((4, 7, 10, 13) if writer.brief else (1, 2, 2, 3, 3, 4, 5))):
        if rng.random() < 0.45:
            blocks.append(Heading(writer.title()))
            blocks.append(paragraph(writer))
        block = _other_block(writer)
        if isinstance(block, Listing) and isinstance(blocks[-1], Listing):
            block = paragraph(writer)  # Typst reads two consecutive lists as one
        blocks.append(block)
    year = rng.randint(1995, 2035)
    return Chapter(
        starting_page=rng.randint(1, 120),
        academic_year=f"{year}-{(year + 1) % 100:02d}" if rng.random() < 0.8 else f"{year}/{year + 1}",
        department=department,
        project_title=writer.title(2, 6),
        number=rng.randint(1, 12),
        title=writer.title(1, 4),
        blocks=blocks,
    )


def paragraph(writer: Writer) -> Paragraph:
    """Returns a random paragraph of one to four sentences."""
    count = 1 if writer.brief else writer.rng.choice((1, 2, 2, 3, 3, 4))
    return Paragraph(" ".join(writer.sentence() for _ in range(count)))


def _other_block(writer: Writer) -> Block:
    rng = writer.rng
    make = rng.choices((paragraph, _listing, _table, _figure, _equation, _quote, _code), (30, 20, 14, 12, 8, 8, 8))[0]
    return make(writer)


def _listing(writer: Writer) -> Listing:
    items = [writer.phrase() for _ in range(writer.rng.randint(2, 5))]
    return Listing(items, writer.rng.random() < 0.4)


def _table(writer: Writer) -> Table:
    rng = writer.rng
    columns = rng.randint(2, 4)
    head = [writer.noun().capitalize() for _ in range(columns)]
    rows = [
        [_cell(writer) if column else rng.choice((writer.name, writer.phrase))() for column in range(columns)]
        for _ in range(rng.randint(2, 4))
    ]
    return Table(writer.phrase(), [head, *rows])


def _cell(writer: Writer) -> str:
    rng = writer.rng
    draw = rng.random()
    if draw < 0.2:
        return f"{writer.number()} {writer.noun()}"
    return writer.noun().capitalize() if draw < 0.35 else writer.number()


def _figure(writer: Writer) -> Figure:
    rng = writer.rng
    directory = rng.choice(("", "images/", "figures/", "pictures/"))  # check_words: allow
    name = rng.choice((f"{writer.noun()}", f"image{rng.randint(1, 30):03d}", f"{writer.noun()}-{rng.randint(1, 9)}"))
    return Figure(writer.phrase(), f"{directory}{name}.{rng.choice(('png', 'jpg', 'svg'))}")


def _equation(writer: Writer) -> Equation:
    rng = writer.rng
    a, b, c, d = rng.sample("abcdefghkmnpqrstuvwxyz", 4)
    n = rng.randint(2, 99)
    formulas = (
        f"{a} = {b} + {n} - {c}", f"{a} = ({b} + {c}) / {n}", f"{a}^2 + {b}^2 = {c}^2", f"{a} = {b} / {c} + {d}",
        f"{a}_{n} = {b} - {n} + {c}_{n}", f"{a} <= {b}^{n % 10}", f"{a} = ({b} - {n}) / ({c} + {d})",
        f"{a} = ({b} + {c} + {d}) / {n}", f"{a} = {b} / ({c} + {n % 10})",
    )  # fmt: skip
    return Equation(rng.choice(formulas))


def _quote(writer: Writer) -> Quote:
    phrase = writer.phrase()
    return Quote(writer.sentence(), writer.rng.choice((writer.name(), writer.name(), phrase)))


def _code(writer: Writer) -> Code:
    rng = writer.rng
    name, other, n = writer.noun(), writer.noun(), rng.randint(1, 99)
    lines = rng.choice(
        (
            [f"def {name}({other}):", f"    return {other} * {n}"],
            [f"for {name} in range({n}):", f"    print({name})"],
            [f"SELECT {name} FROM {other}", f"WHERE {name} > {n};"],
            [f"int {name} = {n};", f"{other}({name});"],
            [f"./{name} --{other} {n}"],
            [f"{name} --{other} {writer.noun()}.{writer.invented()[:3]} --{writer.noun()} {n}"],
            [f"{name}({other}, {n})", f"{writer.noun()} = {name}[{n}] - {other}.{writer.noun()}"],
        )
    )
    return Code(lines)


def copy_task(writer: Writer) -> Chapter:
    """Returns a record whose document is its text, word for word: pretraining starts with these."""
    rng = writer.rng
    count = rng.choice((10, 20, 40, 80, 160) if writer.hard else (2, 3, 4, 5, 6, 8, 12, 20))
    words = [
        rng.choice((writer.noun, writer.invented, writer.word_with_symbol, writer.name, writer.number))()
        for _ in range(count)
    ]
    return Chapter(1, "2000-01", COPY_OFFICE, "Copy", 1, "Copy", [Paragraph(" ".join(words) + ".")])


def random_writer(seed: int, index: int, unseen: bool) -> Writer:
    """Returns the writer of one record. It depends on seed and index alone, so any record can be made separately."""
    return Writer(random.Random(f"{seed}-{index}"), unseen)
