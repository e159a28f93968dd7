"""How reliable the documents of a fitted model are, with each mechanism of decoding on and off.

    python -m benchmarks.reliability OUTPUT --model RUN (--data PAIRS.json | --synthetic 200 | --hostile)
        [--trials NAME ...]

`--synthetic` makes records of random chapters, for a model that was fitted on the demo's samples; `--hostile` records
that have Typst code, delimiters, links and other scripts in their text. With `--data`, the references of the pairs are
measured as well. Fidelity counts a document that does not compile as 0. The first trial
includes the start of the processes that compile. Writes OUTPUT.json and prints each trial.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import ResultFile, argument_parser
from benchmarks.hostile_texts import HOSTILE_TEXTS
from benchmarks.nano.chapters import make_chapter, random_writer
from typst_lit import GenerationSettings, Generator
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.metrics.functional import content_fidelity, words
from typst_lit.typesetting.typesetter import Typesetter

TRIALS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "no contract": {"contract": False},
    "no checkpoints": {"contract": False, "checkpoints": False},
    "none": {"contract": False, "checkpoints": False, "valid_syntax": False},
    "classic": {"sampling": "classic"},
    "classic, none": {"sampling": "classic", "contract": False, "checkpoints": False, "valid_syntax": False},
    "deterministic": {"deterministic": True},
}
MAX_CHARS = 500  # of a chapter's text; the demo's samples have at most 505
DEPARTMENTS = ("School of Transport Studies", "School of Education", "Department of Electrical Engineering")


def synthetic_records(count: int) -> list[dict[str, Any]]:
    """Returns records of random chapters, no longer than the demo's, with words that typst-nano was not trained on."""
    chapters = (
        make_chapter(random_writer(9, index, unseen=True), DEPARTMENTS[index % len(DEPARTMENTS)])
        for index in itertools.count()
    )
    short = (chapter.record for chapter in chapters if len(chapter.record["contents_txt"]) <= MAX_CHARS)
    return list(itertools.islice(short, count))


def hostile_records() -> list[dict[str, Any]]:
    """Returns records of which each has two lines that would do something in Typst."""
    records = synthetic_records(len(HOSTILE_TEXTS))
    for index, record in enumerate(records):
        other = HOSTILE_TEXTS[(index + 1) % len(HOSTILE_TEXTS)]
        record["contents_txt"] += f"\n\nThe text says {HOSTILE_TEXTS[index]} and ends here.\n\n{other} at the start."
    return records


def measure(
    generator: Generator, records: Sequence[Mapping[str, Any]], directory: Path | None = None
) -> dict[str, Any]:
    """Generates a document for each record, and returns what became of them; their sources go to a directory."""
    start = time.monotonic()
    documents: list[GeneratedDocument] = []
    for document in generator.generate(records):
        documents.append(document)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{document.index}.typ").write_text(document.source, "utf-8")
        print(f"  {len(documents)} of {len(records)}: fidelity {document.fidelity}, {document.problems}", flush=True)
    seconds = time.monotonic() - start
    documents.sort(key=lambda document: document.index)
    fidelities = [document.fidelity or 0.0 if document.compiled else 0.0 for document in documents]
    num_words = sum(len(words(document.result.text)) for document in documents if document.result is not None)
    tokens = sum(document.tokens for document in documents)
    return {
        "documents": len(documents),
        "compile_as_written": sum(bool(d.compiled and not d.repairs) for d in documents),
        "compile_after_repair": sum(bool(d.compiled) for d in documents),
        "clean": sum(bool(d.clean) for d in documents),
        "fidelity": round(mean(fidelities), 4),
        "lowest_fidelities": [round(value, 4) for value in sorted(fidelities)[:10]],
        "missing_lines": sum(len(d.missing_lines or ()) for d in documents),
        "invented_share": round(sum(len(d.invented_words or ()) for d in documents) / max(1, num_words), 5),
        "rollbacks": sum(d.rollbacks for d in documents),
        "tokens": tokens,
        "discarded": sum(d.discarded for d in documents),
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / seconds, 1),
    }


def reference_fidelity(pairs: Sequence[Mapping[str, Any]], body_field: str, typesetter: Typesetter) -> float:
    """Returns the mean fidelity of the outputs of pairs."""
    results = typesetter.compile_many(pair["output"] for pair in pairs)
    values = [
        content_fidelity(str(pair["input"][body_field]), result.body)
        for pair, result in zip(pairs, results, strict=True)
    ]
    return round(mean(value for value in values if value is not None), 4)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", required=True, help="directory of a run or of an adapter")
    parser.add_argument("--data", type=Path, help="JSON list of pairs")
    parser.add_argument("--synthetic", type=int, metavar="N", help="number of records of random chapters")
    parser.add_argument("--trials", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--merge", action="store_true", help="16-bit base model, with the adapter merged into it")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="directory for the documents' sources")
    parser.add_argument("--hostile", action="store_true", help="records with Typst code in their text")
    args = parser.parse_args()
    if bool(args.data) + bool(args.synthetic) + args.hostile != 1:
        parser.error("one of --data, --synthetic and --hostile is required")
    pairs = json.loads(args.data.read_text("utf-8")) if args.data else []
    records = [pair["input"] for pair in pairs]
    records = records or (hostile_records() if args.hostile else synthetic_records(args.synthetic))
    data = args.data.name if args.data else "hostile" if args.hostile else "synthetic"
    header = {"model": Path(args.model).name, "data": data}
    with Typesetter(normalize_paths=True) as typesetter:
        if pairs:
            header["reference_fidelity"] = reference_fidelity(pairs, "contents_txt", typesetter)
    results = ResultFile(args.output, args.overwrite, **header)
    for name in args.trials:
        generator = Generator.load(args.model, use_4bit=not args.merge, merge=args.merge)
        generator.settings = GenerationSettings(**TRIALS[name])
        trial = {"trial": name, **measure(generator, records, args.sources and args.sources / name)}
        print(json.dumps(trial), flush=True)
        results.add(trial)


if __name__ == "__main__":
    main()
