"""Styles of departments that come once: drawn at random from many more forms than the known departments have.

As no one can know such a style by its department's name, a model that is trained on them learns which forms there are
instead of one for certain, and keeps to those it has begun with. That is what makes it quick to learn a new house
style. Nothing that marks the samples' style (`benchmarks.nano.styles.HOUSE_MARKS`) is among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from benchmarks.nano import styles
from benchmarks.nano.chapters import Chapter, Code, Equation, Figure, Heading, Quote, Table
from benchmarks.nano.styles import Look, Style, cells, escape, quoted, rows
from benchmarks.nano.words import Writer

Form = TypeVar("Form")
COLOURS = ("navy", "teal", "olive", "purple", "eastern", "gray", "blue", "green", "red", "orange", "black", "fuchsia")
NAMES = (
    ("title", "topic", "name", "work", "report", "theme", "subject", "about"),
    ("department", "faculty", "unit", "school", "place", "dept", "house", "publisher"),
    ("year", "term", "period", "date", "season", "issue", "span", "time"),
)
KINDS = ("Department", "School", "Institute", "Faculty", "Centre", "Office", "Division", "Dept")
PAGE_WORDS = ("", "", "p. ", "Folio ", "Sheet ", "No. ", "- ")


def guest(writer: Writer) -> str:
    """Returns the name of a department that comes once."""
    name = f"{writer.rng.choice(KINDS)} of {writer.title(1, 3)}"
    return guest(writer) if name in styles.DEPARTMENTS else name


class Draw:
    """Draws the measures of a style."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def one(self, *forms: Form) -> Form:
        """Returns one of the forms."""
        return self.rng.choice(forms)

    def often(self, share: float = 0.5) -> bool:
        return self.rng.random() < share

    def colour(self) -> str:
        """Returns a colour, some of them lighter, darker or by number."""
        name = self.rng.choice(COLOURS)
        change = self.rng.choice(("lighten", "darken"))
        if self.often(0.15):
            return f"{name}.{change}({self.rng.randint(1, 9)}0%)"
        return f'rgb("#{self.rng.randrange(16**6):06x}")' if self.often(0.1) else name

    def length(self) -> str:
        """Returns a length of a margin."""
        rng = self.rng
        return self.one(
            f"{rng.randint(2, 4)}cm", f"{rng.randint(1, 3)}.{rng.choice('258')}cm", f"1.{rng.randint(1, 9)}in", "1in",
            f"{rng.randint(15, 40)}mm", f"1.{rng.choice('27')}5in",
        )  # fmt: skip

    def points(self, least: int, most: int) -> str:
        """Returns a size in points."""
        return f"{self.rng.randint(least, most)}pt"

    def stroke(self) -> str:
        """Returns the stroke of a line."""
        width = self.one("0.4pt", "0.5pt", "0.7pt", "1pt", "1.5pt", "2pt", "3pt")
        return f"{width} + {self.colour()}" if self.often(0.8) else width

    def margin(self) -> str:
        """Returns the margins of a page."""
        return self.one(
            self.length(),
            f"(x: {self.length()}, y: {self.length()})",
            f"(top: {self.length()}, bottom: {self.length()}, left: {self.length()}, right: {self.length()})",
            f"(top: {self.length()}, bottom: {self.length()}, x: {self.length()})",
        )

    def line(self) -> str:
        """Returns a line across the page."""
        return f"line(length: {self.one('100%', '100%', '60%')}, stroke: {self.stroke()})"


def guest_style(department: str) -> Style:
    """Returns the style of a department that comes once, a function of its name."""
    draw = Draw(random.Random(department))
    look = Look(
        paper=draw.one("a4", "a4", "a4", "us-letter", "a5"),
        margin=draw.margin(),
        size=draw.one("10pt", "11pt", "12pt", ""),
        side=draw.one("left", "center", "right"),
        rule=draw.stroke(),
        justify=draw.often(0.6),
    )
    with_title_page = draw.often(0.4)
    return Style(
        look, _page(draw, with_title_page), _title(draw, not with_title_page), _heading(draw), _listing(draw),
        _ordered(draw), _table(draw), _figure(draw), _equation(draw), _quote(draw), _code(draw),
    )  # fmt: skip


def _title_page(draw: Draw) -> Callable[[Chapter], str]:
    place = f"{draw.one('center', 'left', 'right')} + {draw.one('top', 'bottom')}"
    if draw.often():
        place = draw.one("left + horizon", "right + horizon", "horizon", "center", "center + bottom")
    word = draw.one("Chapter", "CHAPTER")
    large, small, colour = draw.points(20, 30), draw.points(14, 24), draw.colour()
    above = draw.one("", "", f"    #v({draw.length()})\n")
    form = draw.one("upper", "smallcaps", "emph", "")
    ends = draw.one(f"#page(margin: {draw.length()})[\n", "#page[\n", "")

    def write(c: Chapter) -> str:
        title = f"#{form}[{c.title}]" if form else c.title
        text = (
            f"  #align({place})[\n{above}"
            f'    #text({large}, weight: "bold")[{word} {c.number}]\n\n'
            f"    #text({small}, fill: {colour})[{title}]\n  ]\n"
        )
        if ends:
            return f"{ends}{text}]\n\n"
        return "".join(line[2:] + "\n" if line.startswith("  ") else line + "\n" for line in text.split("\n")[:-1]) + (
            "#pagebreak()\n\n"
        )

    return write


def _page(draw: Draw, with_title_page: bool) -> styles.Head:
    named = draw.often(0.6)
    names = [draw.one(*some) for some in NAMES]
    title_page = _title_page(draw) if with_title_page else None
    counted_first = draw.often(0.3)
    word = draw.one(*PAGE_WORDS)
    number = f"{word}#counter(page).display()"
    header, footer = draw.rng.randrange(5), draw.rng.randrange(6)
    spacing, lines = draw.points(2, 8), [draw.line() for _ in range(draw.one(1, 1, 2))]
    size, form = draw.points(8, 10), draw.one("strong", "emph", "smallcaps", "upper")
    extra = [
        f'#set heading(numbering: "{draw.one("1.1", "1.", "1.a", "A.1", "I.1")}")',
        f"#show heading: set text(fill: {draw.colour()})",
        f"#show heading.where(level: 2): set text({draw.points(12, 16)}, fill: {draw.colour()})",
        f"#show heading: set align({draw.one('left', 'center', 'right')})",
        f"#set par(first-line-indent: {draw.one('1em', '1.5em', '2em')})",
        f"#set table(stroke: {draw.stroke()})",
    ]
    extra = [line for line in extra if draw.often(0.3)]

    def write(c: Chapter, k: Look) -> str:
        texts = (c.project_title, c.department, c.academic_year)
        title, department, year = names if named else [f"[{text}]" for text in texts]
        inside = [f"#{name}" for name in names] if named else list(texts)
        above = {
            0: f"align({k.side}, {form}({title}))",
            1: f"stack(\n    spacing: {spacing},\n    {form}({title}),\n"
            + "".join(f"    {line},\n" for line in lines)
            + "  )",
            2: f"[\n    #{form}[{inside[0]}] #h(1fr) {inside[2]}\n    #{lines[0]}\n  ]",
            3: f"align({k.side}, text({size}, fill: gray, {title}))",
            4: f"grid(columns: (1fr, auto), {title}, {year})",
        }[header]
        below = {
            0: f"context stack(\n    spacing: {spacing},\n    {lines[0]},\n"
            f"    grid(columns: (1fr, 1fr, 1fr), align: (left, center, right), {department}, [{number}], {year}),\n  )",
            1: f"context [\n    #text({size})[{inside[1]} #h(1fr) {inside[2]} #h(1fr) {number}]\n  ]",
            2: f"align({k.side})[{word}#context counter(page).display()]",
            3: f"context grid(\n    columns: (1fr, auto),\n    [{inside[1]}, {inside[2]}],\n    [{number}],\n  )",
            4: f"context [\n    #{lines[0]}\n    {inside[1]} #h(1fr) {number}\n  ]",
            5: f"context stack(dir: ltr, {department}, h(1fr), [{number}], h(1fr), {year})",
        }[footer]
        lets = "".join(f"#let {name} = {quoted(text)}\n" for name, text in zip(names, texts, strict=True))
        count = f"#counter(page).update({c.starting_page + (1 if title_page else 0)})\n"
        page = f'#set page(\n  paper: "{k.paper}",\n  margin: {k.margin},\n  header: {above},\n  footer: {below},\n)'
        parts = [lets + "\n" if named else "", title_page(c) if title_page else ""]
        parts += [count, page] if counted_first or title_page else [page, "\n" + count.rstrip()]
        return "\n".join(["".join(parts), *extra])

    return write


def _title(draw: Draw, numbered: bool) -> styles.Head:
    colour, size, word = draw.colour(), draw.points(16, 28), draw.one("Chapter", "CHAPTER")
    if not numbered:
        return draw.one(lambda c, k: f"= {c.title}", lambda c, k: f"#heading(level: 1)[{c.title}]")
    return draw.one(
        lambda c, k: f"= {word} {c.number}: {c.title}",
        lambda c, k: f"= {word} {c.number}. {c.title}",
        lambda c, k: f"#heading(level: 1)[{word} {c.number} - {c.title}]",
        lambda c, k: f"#align({k.side})[\n  #text({size}, fill: {colour})[{word} {c.number}]\n]\n\n= {c.title}",
        lambda c, k: f'#text({size}, weight: "bold")[{word} {c.number} #h(1fr) {c.title}]\n\n#line(length: 100%)',
    )


def _heading(draw: Draw) -> Callable[[Heading], str]:
    colour, size = draw.colour(), draw.points(11, 16)
    return draw.one(
        lambda b: f"== {escape(b.text)}",
        lambda b: f"== {escape(b.text)}",
        lambda b: f"=== {escape(b.text)}",
        lambda b: f"#heading(level: 2)[{escape(b.text)}]",
        lambda b: f"#heading(level: 2, numbering: none)[{escape(b.text)}]",
        lambda b: f'#text({size}, weight: "bold", fill: {colour})[{escape(b.text)}]',
        lambda b: f"#block(below: {size})[*{escape(b.text)}*]",
        lambda b: f"#underline[{escape(b.text)}]",
    )


def _items(call: str) -> Callable[[list[str]], str]:
    return lambda items: f"{call}\n" + "".join(f"  [{escape(item)}],\n" for item in items) + ")"


def _listing(draw: Draw) -> Callable[[list[str]], str]:
    return draw.one(
        lambda items: "\n".join(f"- {escape(item)}" for item in items),
        lambda items: "\n".join(f"- {escape(item)}" for item in items),
        lambda items: "\n\n".join(f"- {escape(item)}" for item in items),
        _items("#list("),
        _items(f"#list(\n  marker: [{draw.one('--', '+', 'o', '>')}],"),
        _items(f"#list(\n  indent: {draw.points(6, 20)},"),
    )


def _ordered(draw: Draw) -> Callable[[list[str]], str]:
    return draw.one(
        lambda items: "\n".join(f"+ {escape(item)}" for item in items),
        lambda items: "\n".join(f"+ {escape(item)}" for item in items),
        lambda items: "\n".join(f"{number}. {escape(item)}" for number, item in enumerate(items, 1)),
        _items("#enum("),
        _items(f'#enum(\n  numbering: "{draw.one("a)", "1)", "i.", "(1)", "A.")}",'),
    )


def _table(draw: Draw) -> Callable[[Table], str]:
    strong, wrapped, first = draw.often(), draw.often(0.75), draw.often(0.3)
    coloured = draw.one("(x, y) => if y == 0", "(_, y) => if calc.odd(y)")
    looks = [
        f"fill: {coloured} {{ {draw.colour()} }},",
        f"stroke: {draw.stroke()},",
        "stroke: none,",
        f"align: {draw.one('left', 'center', 'horizon', 'right')},",
        f"inset: {draw.points(4, 9)},",
    ]
    look = [draw.one(*looks)] if draw.often(0.7) else []
    header, rule = draw.often(0.3), draw.often(0.2)
    widths: tuple[Callable[[int], str], ...] = (
        str, str, lambda n: "(" + ", ".join(["1fr"] * n) + ")", lambda n: f"(auto,) * {n}",
    )  # fmt: skip
    count = draw.one(*widths)

    def write(b: Table) -> str:
        indent = "    " if wrapped else "  "
        head = cells(b.rows[0], strong)
        head = f"table.header({head})" if header else head
        inside = "".join(f"{indent}{one}\n" for one in [f"columns: {count(len(b.rows[0]))},", *look, f"{head},"])
        inside += f"{indent}table.hline(),\n" if rule else ""
        inside += rows(b, indent)
        if not wrapped:
            return f"#table(\n{inside})\n\n{escape(b.caption)}"
        caption = f"  caption: [{escape(b.caption)}],\n"
        table = f"  table(\n{inside}  ),\n"
        return f"#figure(\n{caption + table if first else table + caption})"

    return write


def _figure(draw: Draw) -> Callable[[Figure], str]:
    width, stroke = f"{draw.rng.randint(5, 9)}0%", draw.stroke()
    around = draw.one(
        "{}", "{}", f"rect({{}}, stroke: {stroke})", f"box({{}}, stroke: {stroke})", "block({}, inset: 4pt)",
        "pad({}, y: 6pt)", f"rect({{}}, fill: {draw.colour()})",
    )  # fmt: skip

    def picture(b: Figure) -> str:
        return around.format(f"image({quoted(b.path)}, width: {width})")

    return draw.one(
        lambda b: f"#figure(\n  {picture(b)},\n  caption: [{escape(b.caption)}],\n)",
        lambda b: f"#figure(\n  {picture(b)},\n  caption: [{escape(b.caption)}],\n)",
        lambda b: f"#figure({picture(b)}, caption: [{escape(b.caption)}])",
        lambda b: f"#figure(\n  caption: [{escape(b.caption)}],\n  {picture(b)},\n)",
        lambda b: f"#align(center, {picture(b)})\n\n{escape(b.caption)}",
    )


def _equation(draw: Draw) -> Callable[[Equation], str]:
    return draw.one(
        lambda b: f"$ {b.formula} $",
        lambda b: f"$ {b.formula} $",
        lambda b: f"#align(center)[${b.formula}$]",
        lambda b: f'#math.equation(block: true, numbering: "(1)", $ {b.formula} $)',
        lambda b: f"#block(inset: 6pt)[$ {b.formula} $]",
    )


def _quote(draw: Draw) -> Callable[[Quote], str]:
    around = draw.one(
        f"stroke: (left: {draw.stroke()}), inset: {draw.points(4, 12)}", f"inset: {draw.points(4, 12)}",
        f"fill: {draw.colour()}, inset: {draw.points(4, 12)}", f"stroke: (y: {draw.stroke()}), inset: 6pt",
        f"stroke: (left: {draw.stroke()}), inset: (left: {draw.points(6, 14)})",
    )  # fmt: skip
    text, author = draw.one("{}", "{}", "_{}_", "#emph[{}]"), draw.one("{}", "_{}_", "#smallcaps[{}]", "*{}*")
    between = draw.one("\n\n", " #h(1fr) ", " -- ", " #linebreak() ")
    return draw.one(
        lambda b: f"#quote(block: true, attribution: [{escape(b.author)}])[{escape(b.text)}]",
        lambda b: f"#block({around})[{text.format(escape(b.text))}{between}{author.format(escape(b.author))}]",
        lambda b: f"#block({around})[{text.format(escape(b.text))}{between}{author.format(escape(b.author))}]",
        lambda b: f"#pad(x: 1cm)[{text.format(escape(b.text))}{between}{author.format(escape(b.author))}]",
    )


def _code(draw: Draw) -> Callable[[Code], str]:
    colour = draw.colour()
    return draw.one(
        lambda b: "```\n" + "\n".join(b.lines) + "\n```",
        lambda b: "```\n" + "\n".join(b.lines) + "\n```",
        lambda b: f"#block(fill: {colour}, inset: 6pt)[\n```\n" + "\n".join(b.lines) + "\n```\n]",
        lambda b: "#block(stroke: 0.5pt, width: 100%)[\n```\n" + "\n".join(b.lines) + "\n```\n]",
    )
