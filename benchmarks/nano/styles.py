"""House styles: how a chapter is written in Typst.

A style is one choice for each element (page, headings, lists, ...). Each department always has the same style, so that
a model can learn it by the department's name. The house style of the samples, `HOUSE_STYLE`, is held out: no
department's style contains any of its marks (`typst_lit.metrics.house_marks.HOUSE_MARKS`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.nano.chapters import (
    Block,
    Chapter,
    Code,
    Equation,
    Figure,
    Heading,
    Listing,
    Paragraph,
    Quote,
    Table,
)

SUBJECTS = (
    "Civil Engineering", "Computer Science", "Physics", "Chemistry", "Biology", "History", "Music", "Mathematics",
    "Geography", "Economics", "Agriculture", "Architecture", "Medicine", "Nursing", "Law", "Philosophy",
    "Mechanical Engineering", "Electrical Engineering", "Botany", "Fisheries", "Forestry", "Design", "Education",
    "Statistics",
)  # fmt: skip
DEPARTMENTS = [
    f"{prefix} of {subject}"
    for index, subject in enumerate(SUBJECTS)
    for prefix in (("Dept", "School") if index % 2 else ("Department", "Institute"))
]


def escape(text: str) -> str:
    """Returns plain text as Typst markup."""
    return "".join("\\" + letter if letter in "\\#$*_@<`~[]" else letter for letter in text)


def quoted(text: str) -> str:
    """Returns plain text as a Typst string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True)
class Look:
    """Paper, lengths and alignments of a style."""

    paper: str
    margin: str
    size: str
    side: str
    rule: str
    justify: bool


Preamble = Callable[[Chapter, Look], str]
PAGES: list[Preamble] = [
    lambda c, k: (
        f"""#set page(
  paper: "{k.paper}",
  margin: {k.margin},
  header: align({k.side}, text(9pt, style: "italic")[{c.project_title}]),
  footer: context [
    #text(9pt)[{c.department} #h(1fr) {c.academic_year} #h(1fr) #counter(page).display()]
  ],
)
#counter(page).update({c.starting_page})"""
    ),
    lambda c, k: (
        f"""#set page(
  paper: "{k.paper}",
  margin: {k.margin},
  numbering: "1",
  number-align: {k.side},
  header: [{c.department} #h(1fr) {c.project_title}, {c.academic_year}],
)
#counter(page).update({c.starting_page})"""
    ),
    lambda c, k: (
        f"""#let title = {quoted(c.project_title)}
#let department = {quoted(c.department)}
#let year = {quoted(c.academic_year)}
#set page(
  paper: "{k.paper}",
  margin: {k.margin},
  header: align({k.side}, title),
  footer: context grid(
    columns: (1fr, auto),
    [#department, #year],
    counter(page).display(),
  ),
)
#counter(page).update({c.starting_page})"""
    ),
    lambda c, k: (
        f"""#counter(page).update({c.starting_page})
#set page(
  paper: "{k.paper}",
  margin: {k.margin},
  header: [
    #smallcaps[{c.project_title}]
    #line(length: 100%, stroke: {k.rule})
  ],
  footer: align({k.side})[{c.department} | {c.academic_year} | #context counter(page).display()],
)"""
    ),
]
TITLES: list[Preamble] = [
    lambda c, k: f"= Chapter {c.number}: {c.title}",
    lambda c, k: f"= Chapter {c.number} - {c.title}",
    lambda c, k: f'#align(center)[#text(18pt, weight: "bold")[Chapter {c.number}]]\n\n= {c.title}',
    lambda c, k: f"#heading(level: 1)[Chapter {c.number}. {c.title}]",
]
HEADINGS: list[Callable[[Heading], str]] = [
    lambda b: f"== {escape(b.text)}",
    lambda b: f"#heading(level: 2)[{escape(b.text)}]",
    lambda b: f'#text(13pt, weight: "bold")[{escape(b.text)}]',
]
LISTS: list[Callable[[list[str]], str]] = [
    lambda items: "\n".join(f"- {escape(item)}" for item in items),
    lambda items: "#list(\n" + "".join(f"  [{escape(item)}],\n" for item in items) + ")",
]
ORDERED: list[Callable[[list[str]], str]] = [
    lambda items: "\n".join(f"+ {escape(item)}" for item in items),
    lambda items: "#enum(\n" + "".join(f"  [{escape(item)}],\n" for item in items) + ")",
    lambda items: "\n".join(f"{number}. {escape(item)}" for number, item in enumerate(items, 1)),
]


def cells(row: list[str], strong: bool = False) -> str:
    """Returns the cells of a table's row."""
    return ", ".join(f"[*{escape(cell)}*]" if strong else f"[{escape(cell)}]" for cell in row)


def rows(table: Table, indent: str) -> str:
    """Returns the rows of a table below its header."""
    return "".join(f"{indent}{cells(row)},\n" for row in table.rows[1:])


TABLES: list[Callable[[Table], str]] = [
    lambda b: (
        f"#figure(\n  table(\n    columns: {len(b.rows[0])},\n    table.header({cells(b.rows[0], strong=True)}),\n"
        f"{rows(b, '    ')}  ),\n  caption: [{escape(b.caption)}],\n)"
    ),
    lambda b: f"#table(\n  columns: {len(b.rows[0])},\n  {cells(b.rows[0])},\n{rows(b, '  ')})\n\n{escape(b.caption)}",
    lambda b: (
        f"#figure(\n  caption: [{escape(b.caption)}],\n  table(\n    columns: {len(b.rows[0])},\n    stroke: none,\n"
        f"    {cells(b.rows[0])},\n    table.hline(),\n{rows(b, '    ')}  ),\n)"
    ),
]
FIGURES: list[Callable[[Figure], str]] = [
    lambda b: f"#figure(\n  image({quoted(b.path)}, width: 80%),\n  caption: [{escape(b.caption)}],\n)",
    lambda b: f"#align(center, image({quoted(b.path)}, width: 60%))\n\n{escape(b.caption)}",
    lambda b: f"#figure(image({quoted(b.path)}), caption: [{escape(b.caption)}])",
]
EQUATIONS: list[Callable[[Equation], str]] = [
    lambda b: f"$ {b.formula} $",
    lambda b: f"#align(center)[${b.formula}$]",
    lambda b: f"#math.equation(block: true, ${b.formula}$)",
]
QUOTES: list[Callable[[Quote], str]] = [
    lambda b: f"#quote(block: true, attribution: [{escape(b.author)}])[{escape(b.text)}]",
    lambda b: f"#pad(x: 1cm)[_{escape(b.text)}_ #h(1fr) {escape(b.author)}]",
    lambda b: f"#block(inset: 8pt)[{escape(b.text)}\n\n{escape(b.author)}]",
]
CODES: list[Callable[[Code], str]] = [
    lambda b: "```\n" + "\n".join(b.lines) + "\n```",
    lambda b: "#block(inset: 6pt)[\n```\n" + "\n".join(b.lines) + "\n```\n]",
]


@dataclass(frozen=True)
class Style:
    """One choice for each element of a document."""

    look: Look
    page: Preamble
    title: Preamble
    heading: Callable[[Heading], str]
    listing: Callable[[list[str]], str]
    ordered: Callable[[list[str]], str]
    table: Callable[[Table], str]
    figure: Callable[[Figure], str]
    equation: Callable[[Equation], str]
    quote: Callable[[Quote], str]
    code: Callable[[Code], str]

    def render(self, chapter: Chapter) -> str:
        """Returns the Typst source of a chapter."""
        parts = [self.page(chapter, self.look), self._text_settings(), self.title(chapter, self.look)]
        return "\n\n".join([*filter(None, parts), *map(self.block, chapter.blocks)]) + "\n"

    def _text_settings(self) -> str:
        size = f"#set text(size: {self.look.size})" if self.look.size else ""
        justify = "#set par(justify: true)" if self.look.justify else ""
        return "\n".join(filter(None, (size, justify)))

    def block(self, block: Block) -> str:
        """Returns the Typst source of one block."""
        match block:
            case Heading():
                return self.heading(block)
            case Paragraph(text):
                return escape(text)
            case Listing(items, ordered):
                return self.ordered(items) if ordered else self.listing(items)
            case Table():
                return self.table(block)
            case Figure():
                return self.figure(block)
            case Equation():
                return self.equation(block)
            case Quote():
                return self.quote(block)
            case Code():
                return self.code(block)


def department_style(department: str) -> Style:
    """Returns the style of one of the `DEPARTMENTS`; it depends on the name alone."""
    rng = random.Random(department)
    look = Look(
        paper=rng.choice(("a4", "a4", "us-letter", "a5")),
        margin=rng.choice(("(x: 2.5cm, y: 3cm)", "2.5cm", "(top: 3cm, bottom: 2cm, x: 2cm)", "1in")),
        size=rng.choice(("10pt", "11pt", "12pt", "")),
        side=rng.choice(("left", "center", "right")),
        rule=rng.choice(("0.5pt", "1pt", "0.5pt + gray")),
        justify=rng.random() < 0.6,
    )
    elements = (PAGES, TITLES, HEADINGS, LISTS, ORDERED, TABLES, FIGURES, EQUATIONS, QUOTES, CODES)
    return Style(look, *(rng.choice(choices) for choices in elements))  # type: ignore[arg-type]


# The samples' house style. Its marks: a separate title page, the project's title above a double maroon line, a footer
# of three columns below a maroon line, numbered section headings in maroon, quotes with a line on their left.


def _house_page(c: Chapter, k: Look) -> str:
    return f"""#let project = {quoted(c.project_title)}
#let office = {quoted(c.department)}
#let session = {quoted(c.academic_year)}

#page(margin: 1.25in)[
  #align(center + horizon)[
    #text(26pt, weight: "bold")[CHAPTER {c.number}]

    #text(22pt, fill: maroon)[#upper[{c.title}]]
  ]
]

#counter(page).update({c.starting_page + 1})
#set page(
  paper: "a4",
  margin: (top: 1.3in, bottom: 1.2in, left: 1.25in, right: 1in),
  header: stack(
    spacing: 3pt,
    strong(project),
    line(length: 100%, stroke: 2pt + maroon),
    line(length: 100%, stroke: 0.7pt + maroon),
  ),
  footer: context stack(
    spacing: 4pt,
    line(length: 100%, stroke: 0.7pt + maroon),
    grid(columns: (1fr, 1fr, 1fr), align: (left, center, right), office, [Page #counter(page).display()], session),
  ),
)
#set heading(numbering: "1.1")
#show heading: set text(fill: maroon)"""


HOUSE_STYLE = Style(
    look=Look("a4", "", "12pt", "left", "", True),
    page=_house_page,
    title=lambda c, k: f"= {c.title}",
    heading=lambda b: f"== {escape(b.text)}",
    listing=lambda items: "\n".join(f"- {escape(item)}" for item in items),
    ordered=lambda items: "\n".join(f"+ {escape(item)}" for item in items),
    table=lambda b: (
        f"#figure(\n  table(\n    columns: {len(b.rows[0])},\n"
        "    fill: (x, y) => if y == 0 { maroon.lighten(85%) },\n"
        f"    {cells(b.rows[0], strong=True)},\n{rows(b, '    ')}  ),\n  caption: [{escape(b.caption)}],\n)"
    ),
    figure=lambda b: (
        f"#figure(\n  rect(image({quoted(b.path)}, width: 70%), stroke: maroon),\n  caption: [{escape(b.caption)}],\n)"
    ),
    equation=lambda b: f"$ {b.formula} $",
    quote=lambda b: f"#block(stroke: (left: 2pt + maroon), inset: 8pt)[{escape(b.text)}\n\n_{escape(b.author)}_]",
    code=lambda b: "```\n" + "\n".join(b.lines) + "\n```",
)
