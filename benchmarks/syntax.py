"""How well the syntax state follows Typst's own parser, and what it costs.

    python -m benchmarks.syntax OUTPUT SOURCES.json [SOURCES.json ...] [--cuts 8] [--overwrite]

Each file is a list of pairs (``output``) or of snippets (``source``), such as Typst's test suite. Of the sources that
the parser accepts, all have to be accepted. Each is then cut at random positions; what is open is closed, and the
parser must not report a delimiter. Writes OUTPUT.json.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import typst

from benchmarks.harness import argument_parser, environment, write_json
from typst_lit.typesetting.syntax import START, advance, closers

DELIMITER_ERROR = re.compile("unclosed|unexpected closing|unexpected end of block comment")


def read_sources(path: Path) -> list[str]:
    """Returns the Typst sources of a file."""
    return [item.get("output") or item["source"] for item in json.loads(path.read_text("utf-8"))]


def syntax_errors(compiler: typst.Compiler, source: str) -> list[str]:
    """Returns the parser's errors; evaluation stops before the source."""
    try:
        compiler.compile(f'#panic("parsed")\n{source}'.encode())
    except typst.TypstError as error:
        messages = re.findall("^error: (.*)$", error.diagnostic, re.MULTILINE)
        return [] if "panicked" in messages[0] else messages
    raise AssertionError("the source did not panic")


def measure(compiler: typst.Compiler, sources: list[str], num_cuts: int, seed: int = 0) -> dict[str, Any]:
    """Returns how many sources are accepted, and how many of their prefixes are closed."""
    generator = random.Random(seed)
    parsed = [source for source in sources if not syntax_errors(compiler, source)]
    start = time.perf_counter()
    states = [advance(START, source) for source in parsed]
    seconds = time.perf_counter() - start
    with_delimiter_error = complete = 0
    prefixes = [source[: generator.randrange(len(source) + 1)] for source in parsed for _ in range(num_cuts)]
    for prefix in prefixes:
        state = advance(START, prefix)
        errors = syntax_errors(compiler, prefix + closers(state)) if state is not None else ["unclosed"]
        with_delimiter_error += any(map(DELIMITER_ERROR.match, errors))
        complete += not errors
    return {
        "sources": len(sources),
        "parsed": len(parsed),
        "accepted": sum(state is not None and not closers(state) for state in states),
        "cuts": len(prefixes),
        "cuts_with_delimiter_error": with_delimiter_error,
        "cuts_that_parse": complete,
        "microseconds_per_character": round(1e6 * seconds / sum(map(len, parsed)), 3),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--cuts", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        compiler = typst.Compiler(root=root)
        trials = [{"file": path.name, **measure(compiler, read_sources(path), args.cuts)} for path in args.sources]
    for trial in trials:
        print(json.dumps(trial))
    write_json(args.output.with_suffix(".json"), {**environment(), "trials": trials}, args.overwrite)


if __name__ == "__main__":
    main()
