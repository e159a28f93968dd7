#!/usr/bin/env python3
"""Finds words that this project replaced by the usual terms of its field, in US spelling, and prints the replacement.

A line that needs such a word says so by a comment with "check_words: allow".
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEARCHED = (
    "typst_lit",
    "tests",
    "benchmarks",
    "configs",
    "docs",
    "README.md",
    "Makefile",
    "setup.cfg",
    "pyproject.toml",
)
SUFFIXES = (".py", ".md", ".rst", ".yaml", ".jinja", ".cfg", ".toml")
ALLOW = "check_words: allow"

# Pattern -> replacement. A space in a pattern also matches a line break of a paragraph, an underscore or a hyphen.
WORDS = {
    r"mend(s|ed|ing)?": "repair, fix",
    r"shel(f|ves)": "draft corpus, list",
    r"ways? out": "hint, fix",
    r"stand ins?": "placeholder",
    r"anew": "again, from scratch",
    r"(go|goes|gone|going|went) on": "resume, continue",
    r"faulty": "invalid",
    r"faults?(?! injection)": "error, invalid",
    r"spoil(s|t|ed|ing)?": "corrupt, distort",
    r"vouch(es|ed)?": "list, guarantee",
    r"passed over": "skip",
    r"for want of": "out of, without",
    r"(put|puts) into force": "apply",
    r"once more": "again",
    r"dear(er|est)": "expensive",
    r"told": "logged, reported",
    r"pictures?": "image",
    r"furniture": "headers and footers",
    r"beside": "next to, in addition to",
    r"stood": "was",
    r"strangers?": "unknown, unmatched",
    r"crowd": "concurrency",
    r"habits?": "callback",
    r"rooms": "packages",
    r"thrice": "three times",
    r"shall": "must, will",
    r"so many": "N, a number of",
    r"made otherwise": "made with different settings",
    r"the usual one": "the default",
    r"whole or not there": "atomic",
    r"made up": "synthetic",
    r"(?<!in[\s-])(?<!take\s)(?<!takes\s)(?<!its\s)(?<!their\s)(?<!#)places?(?!\(|-items)": "index, path",
    r"(MOST|LARGEST|LONGEST|FEWEST|LEAST|SMALLEST)_\w+": "MAX_*, MIN_*",
    r"most_(?!common)\w+|\w+_most": "max_*",
    r"(?<=def\s)\w+_of(?=\()": "a verb or a noun",
    r"colour(s|ed|ing)?": "color",
    r"grey(s|ed)?": "gray",
    r"licen[c]es?": "license",
    r"behaviours?": "behavior",
    r"neighbours?": "neighbor",
    r"favours?": "favor",
    r"centred?": "center",
    r"programmes?": "program",
    r"artefacts?": "artifact",
    r"labell(ed|ing)": "labeled, labeling",
    r"analys(e|ed|ing)": "analyze",
    r"[a-z]*(token|quant|initial|serial|normal|synchron|optim|organ|summar|general|special|recogn|real|util|minim|maxim"
    r"|visual|random|character|custom|final|memor|prior|author|local|penal)is(e|es|ed|ers?|ing|ations?)": "-ize",
}  # fmt: skip

# Names of Python variables and arguments that do not say what they hold.
VAGUE_NAMES = {"each", "given", "made", "odd", "ours", "theirs", "there", "told", "wanted", "whole"}


def pattern(word: str) -> re.Pattern[str]:
    """Returns the pattern for a word, alone or as a part of an identifier."""
    spaced = word.replace(" ", r"(?:[\s_-]+(?:#\s+)?)")
    return re.compile(rf"(?<![A-Za-z])(?:{spaced})(?![A-Za-z])", re.IGNORECASE if word == word.lower() else 0)


PATTERNS = {pattern(word): replacement for word, replacement in WORDS.items()}


def files() -> Iterator[Path]:
    """Yields the files to search."""
    for name in SEARCHED:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in SUFFIXES or file.name == "Makefile":
                yield file


def banned_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line, the word and its replacement."""
    for word, replacement in PATTERNS.items():
        for match in word.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), replacement


def vague_names(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line, the name and its replacement for the vague names that Python code defines."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                if name in VAGUE_NAMES:
                    yield node.lineno, name, "the noun that it holds"


def main() -> int:
    failed = False
    for file in files():
        text = file.read_text("utf-8")
        lines = text.split("\n")
        names = vague_names(text) if file.suffix == ".py" else ()
        for line, word, replacement in sorted([*banned_words(text), *names]):
            if ALLOW not in lines[line - 1]:
                print(f"{file.relative_to(ROOT)}:{line}: {word} -> {replacement}")
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
