"""Random styles, one for each department that occurs only once, drawn from many more forms than `DEPARTMENTS` have.

Such a style can't be learned by its department's name, so a model trained on them learns the possible forms, and to
stay with the ones that a document started with. That makes it quick to learn a new house style. No random style
contains a mark of the samples' style (`typst_lit.metrics.house_marks.HOUSE_MARKS`).
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
COLORS = ("navy", "teal", "olive", "purple", "eastern", "gray", "blue", "green", "red", "orange", "black", "fuchsia")
VARIABLE_NAMES = (  # of the title, the department and the year
    ("title", "topic", "name", "work", "report", "theme", "subject", "about"),
    ("department", "faculty", "unit", "school", "place", "dept", "house", "publisher"),  # check_words: allow
    ("year", "term", "period", "date", "season", "issue", "span", "time"),
)
DEPARTMENT_PREFIXES = (
    "Department", "School", "Institute", "Faculty", "Centre", "Office", "Division", "Dept",  # check_words: allow
)  # fmt: skip
PAGE_NUMBER_PREFIXES = ("", "", "p. ", "Folio ", "Sheet ", "No. ", "- ")


def random_department(writer: Writer) -> str:
    """Returns the name of a department that is not one of `DEPARTMENTS`."""
    name = f"{writer.rng.choice(DEPARTMENT_PREFIXES)} of {writer.title(1, 3)}"
    return random_department(writer) if name in styles.DEPARTMENTS else name


class StyleSampler:
    """Draws the parts of a style at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def choice(self, *forms: Form) -> Form:
        """Returns one of the forms."""
        return self.rng.choice(forms)

    def chance(self, probability: float = 0.5) -> bool:
        return self.rng.random() < probability

    def color(self) -> str:
        """Returns a color; some are lightened, darkened or given in hexadecimal."""
        name = self.rng.choice(COLORS)
        adjustment = self.rng.choice(("lighten", "darken"))
        if self.chance(0.15):
            return f"{name}.{adjustment}({self.rng.randint(1, 9)}0%)"
        return f'rgb("#{self.rng.randrange(16**6):06x}")' if self.chance(0.1) else name

    def length(self) -> str:
        """Returns a length of a margin."""
        rng = self.rng
        return self.choice(
            f"{rng.randint(2, 4)}cm", f"{rng.randint(1, 3)}.{rng.choice('258')}cm", f"1.{rng.randint(1, 9)}in", "1in",
            f"{rng.randint(15, 40)}mm", f"1.{rng.choice('27')}5in",
        )  # fmt: skip

    def points(self, min_pt: int, max_pt: int) -> str:
        """Returns a size in points."""
        return f"{self.rng.randint(min_pt, max_pt)}pt"

    def stroke(self) -> str:
        """Returns the stroke of a line."""
        width = self.choice("0.4pt", "0.5pt", "0.7pt", "1pt", "1.5pt", "2pt", "3pt")
        return f"{width} + {self.color()}" if self.chance(0.8) else width

    def margin(self) -> str:
        """Returns the margins of a page."""
        return self.choice(
            self.length(),
            f"(x: {self.length()}, y: {self.length()})",
            f"(top: {self.length()}, bottom: {self.length()}, left: {self.length()}, right: {self.length()})",
            f"(top: {self.length()}, bottom: {self.length()}, x: {self.length()})",
        )

    def line(self) -> str:
        """Returns a line across the page."""
        return f"line(length: {self.choice('100%', '100%', '60%')}, stroke: {self.stroke()})"


def random_style(department: str) -> Style:
    """Returns the style of a department that occurs only once; it depends on the name alone."""
    draw = StyleSampler(random.Random(department))
    look = Look(
        paper=draw.choice("a4", "a4", "a4", "us-letter", "a5"),
        margin=draw.margin(),
        size=draw.choice("10pt", "11pt", "12pt", ""),
        side=draw.choice("left", "center", "right"),
        rule=draw.stroke(),
        justify=draw.chance(0.6),
    )
    with_title_page = draw.chance(0.4)
    return Style(
        look, _page(draw, with_title_page), _title(draw, not with_title_page), _heading(draw), _listing(draw),
        _ordered(draw), _table(draw), _figure(draw), _equation(draw), _quote(draw), _code(draw),
    )  # fmt: skip


def _title_page(draw: StyleSampler) -> Callable[[Chapter], str]:
    alignment = f"{draw.choice('center', 'left', 'right')} + {draw.choice('top', 'bottom')}"
    if draw.chance():
        alignment = draw.choice("left + horizon", "right + horizon", "horizon", "center", "center + bottom")
    word = draw.choice("Chapter", "CHAPTER")
    large, small, color = draw.points(20, 30), draw.points(14, 24), draw.color()
    above = draw.choice("", "", f"    #v({draw.length()})\n")
    form = draw.choice("upper", "smallcaps", "emph", "")
    ends = draw.choice(f"#page(margin: {draw.length()})[\n", "#page[\n", "")

    def write(c: Chapter) -> str:
        title = f"#{form}[{c.title}]" if form else c.title
        text = (
            f"  #align({alignment})[\n{above}"
            f'    #text({large}, weight: "bold")[{word} {c.number}]\n\n'
            f"    #text({small}, fill: {color})[{title}]\n  ]\n"
        )
        if ends:
            return f"{ends}{text}]\n\n"
        return "".join(line[2:] + "\n" if line.startswith("  ") else line + "\n" for line in text.split("\n")[:-1]) + (
            "#pagebreak()\n\n"
        )

    return write


def _page(draw: StyleSampler, with_title_page: bool) -> styles.Preamble:
    uses_variables = draw.chance(0.6)
    names = [draw.choice(*names) for names in VARIABLE_NAMES]
    title_page = _title_page(draw) if with_title_page else None
    counted_first = draw.chance(0.3)
    word = draw.choice(*PAGE_NUMBER_PREFIXES)
    number = f"{word}#counter(page).display()"
    header, footer = draw.rng.randrange(5), draw.rng.randrange(6)
    spacing, lines = draw.points(2, 8), [draw.line() for _ in range(draw.choice(1, 1, 2))]
    size, form = draw.points(8, 10), draw.choice("strong", "emph", "smallcaps", "upper")
    extra = [
        f'#set heading(numbering: "{draw.choice("1.1", "1.", "1.a", "A.1", "I.1")}")',
        f"#show heading: set text(fill: {draw.color()})",
        f"#show heading.where(level: 2): set text({draw.points(12, 16)}, fill: {draw.color()})",
        f"#show heading: set align({draw.choice('left', 'center', 'right')})",
        f"#set par(first-line-indent: {draw.choice('1em', '1.5em', '2em')})",
        f"#set table(stroke: {draw.stroke()})",
    ]
    extra = [line for line in extra if draw.chance(0.3)]

    def write(c: Chapter, k: Look) -> str:
        texts = (c.project_title, c.department, c.academic_year)
        title, department, year = names if uses_variables else [f"[{text}]" for text in texts]
        inside = [f"#{name}" for name in names] if uses_variables else list(texts)
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
        variables = "".join(f"#let {name} = {quoted(text)}\n" for name, text in zip(names, texts, strict=True))
        count = f"#counter(page).update({c.starting_page + (1 if title_page else 0)})\n"
        page = f'#set page(\n  paper: "{k.paper}",\n  margin: {k.margin},\n  header: {above},\n  footer: {below},\n)'
        parts = [variables + "\n" if uses_variables else "", title_page(c) if title_page else ""]
        parts += [count, page] if counted_first or title_page else [page, "\n" + count.rstrip()]
        return "\n".join(["".join(parts), *extra])

    return write


def _title(draw: StyleSampler, numbered: bool) -> styles.Preamble:
    color, size, word = draw.color(), draw.points(16, 28), draw.choice("Chapter", "CHAPTER")
    if not numbered:
        return draw.choice(lambda c, k: f"= {c.title}", lambda c, k: f"#heading(level: 1)[{c.title}]")
    return draw.choice(
        lambda c, k: f"= {word} {c.number}: {c.title}",
        lambda c, k: f"= {word} {c.number}. {c.title}",
        lambda c, k: f"#heading(level: 1)[{word} {c.number} - {c.title}]",
        lambda c, k: f"#align({k.side})[\n  #text({size}, fill: {color})[{word} {c.number}]\n]\n\n= {c.title}",
        lambda c, k: f'#text({size}, weight: "bold")[{word} {c.number} #h(1fr) {c.title}]\n\n#line(length: 100%)',
    )


def _heading(draw: StyleSampler) -> Callable[[Heading], str]:
    color, size = draw.color(), draw.points(11, 16)
    return draw.choice(
        lambda b: f"== {escape(b.text)}",
        lambda b: f"== {escape(b.text)}",
        lambda b: f"=== {escape(b.text)}",
        lambda b: f"#heading(level: 2)[{escape(b.text)}]",
        lambda b: f"#heading(level: 2, numbering: none)[{escape(b.text)}]",
        lambda b: f'#text({size}, weight: "bold", fill: {color})[{escape(b.text)}]',
        lambda b: f"#block(below: {size})[*{escape(b.text)}*]",
        lambda b: f"#underline[{escape(b.text)}]",
    )


def _items(call: str) -> Callable[[list[str]], str]:
    return lambda items: f"{call}\n" + "".join(f"  [{escape(item)}],\n" for item in items) + ")"


def _listing(draw: StyleSampler) -> Callable[[list[str]], str]:
    return draw.choice(
        lambda items: "\n".join(f"- {escape(item)}" for item in items),
        lambda items: "\n".join(f"- {escape(item)}" for item in items),
        lambda items: "\n\n".join(f"- {escape(item)}" for item in items),
        _items("#list("),
        _items(f"#list(\n  marker: [{draw.choice('--', '+', 'o', '>')}],"),
        _items(f"#list(\n  indent: {draw.points(6, 20)},"),
    )


def _ordered(draw: StyleSampler) -> Callable[[list[str]], str]:
    return draw.choice(
        lambda items: "\n".join(f"+ {escape(item)}" for item in items),
        lambda items: "\n".join(f"+ {escape(item)}" for item in items),
        lambda items: "\n".join(f"{number}. {escape(item)}" for number, item in enumerate(items, 1)),
        _items("#enum("),
        _items(f'#enum(\n  numbering: "{draw.choice("a)", "1)", "i.", "(1)", "A.")}",'),
    )


def _table(draw: StyleSampler) -> Callable[[Table], str]:
    strong, wrapped, first = draw.chance(), draw.chance(0.75), draw.chance(0.3)
    colored = draw.choice("(x, y) => if y == 0", "(_, y) => if calc.odd(y)")
    looks = [
        f"fill: {colored} {{ {draw.color()} }},",
        f"stroke: {draw.stroke()},",
        "stroke: none,",
        f"align: {draw.choice('left', 'center', 'horizon', 'right')},",
        f"inset: {draw.points(4, 9)},",
    ]
    look = [draw.choice(*looks)] if draw.chance(0.7) else []
    header, rule = draw.chance(0.3), draw.chance(0.2)
    widths: tuple[Callable[[int], str], ...] = (
        str, str, lambda n: "(" + ", ".join(["1fr"] * n) + ")", lambda n: f"(auto,) * {n}",
    )  # fmt: skip
    count = draw.choice(*widths)

    def write(b: Table) -> str:
        indent = "    " if wrapped else "  "
        head = cells(b.rows[0], strong)
        head = f"table.header({head})" if header else head
        inside = "".join(f"{indent}{line}\n" for line in [f"columns: {count(len(b.rows[0]))},", *look, f"{head},"])
        inside += f"{indent}table.hline(),\n" if rule else ""
        inside += rows(b, indent)
        if not wrapped:
            return f"#table(\n{inside})\n\n{escape(b.caption)}"
        caption = f"  caption: [{escape(b.caption)}],\n"
        table = f"  table(\n{inside}  ),\n"
        return f"#figure(\n{caption + table if first else table + caption})"

    return write


def _figure(draw: StyleSampler) -> Callable[[Figure], str]:
    width, stroke = f"{draw.rng.randint(5, 9)}0%", draw.stroke()
    around = draw.choice(
        "{}", "{}", f"rect({{}}, stroke: {stroke})", f"box({{}}, stroke: {stroke})", "block({}, inset: 4pt)",
        "pad({}, y: 6pt)", f"rect({{}}, fill: {draw.color()})",
    )  # fmt: skip

    def image(b: Figure) -> str:
        return around.format(f"image({quoted(b.path)}, width: {width})")

    return draw.choice(
        lambda b: f"#figure(\n  {image(b)},\n  caption: [{escape(b.caption)}],\n)",
        lambda b: f"#figure(\n  {image(b)},\n  caption: [{escape(b.caption)}],\n)",
        lambda b: f"#figure({image(b)}, caption: [{escape(b.caption)}])",
        lambda b: f"#figure(\n  caption: [{escape(b.caption)}],\n  {image(b)},\n)",
        lambda b: f"#align(center, {image(b)})\n\n{escape(b.caption)}",
    )


def _equation(draw: StyleSampler) -> Callable[[Equation], str]:
    return draw.choice(
        lambda b: f"$ {b.formula} $",
        lambda b: f"$ {b.formula} $",
        lambda b: f"#align(center)[${b.formula}$]",
        lambda b: f'#math.equation(block: true, numbering: "(1)", $ {b.formula} $)',
        lambda b: f"#block(inset: 6pt)[$ {b.formula} $]",
    )


def _quote(draw: StyleSampler) -> Callable[[Quote], str]:
    around = draw.choice(
        f"stroke: (left: {draw.stroke()}), inset: {draw.points(4, 12)}", f"inset: {draw.points(4, 12)}",
        f"fill: {draw.color()}, inset: {draw.points(4, 12)}", f"stroke: (y: {draw.stroke()}), inset: 6pt",
        f"stroke: (left: {draw.stroke()}), inset: (left: {draw.points(6, 14)})",
    )  # fmt: skip
    text, author = draw.choice("{}", "{}", "_{}_", "#emph[{}]"), draw.choice("{}", "_{}_", "#smallcaps[{}]", "*{}*")
    between = draw.choice("\n\n", " #h(1fr) ", " -- ", " #linebreak() ")
    return draw.choice(
        lambda b: f"#quote(block: true, attribution: [{escape(b.author)}])[{escape(b.text)}]",
        lambda b: f"#block({around})[{text.format(escape(b.text))}{between}{author.format(escape(b.author))}]",
        lambda b: f"#block({around})[{text.format(escape(b.text))}{between}{author.format(escape(b.author))}]",
        lambda b: f"#pad(x: 1cm)[{text.format(escape(b.text))}{between}{author.format(escape(b.author))}]",
    )


def _code(draw: StyleSampler) -> Callable[[Code], str]:
    color = draw.color()
    return draw.choice(
        lambda b: "```\n" + "\n".join(b.lines) + "\n```",
        lambda b: "```\n" + "\n".join(b.lines) + "\n```",
        lambda b: f"#block(fill: {color}, inset: 6pt)[\n```\n" + "\n".join(b.lines) + "\n```\n]",
        lambda b: "#block(stroke: 0.5pt, width: 100%)[\n```\n" + "\n".join(b.lines) + "\n```\n]",
    )
