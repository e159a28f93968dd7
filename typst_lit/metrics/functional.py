"""Scores of one document as pure functions of text. Neither torch nor Lightning is needed here.

They look at what a reader sees, the text layer of the rendered pages, not at the source: text that is written but
hidden, or spoilt by markup, is not there.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from rapidfuzz.distance import LCSseq, Levenshtein

from typst_lit.typesetting.results import PageText

# A hyphen within a word, at the end of a line too: typesetting puts hyphens in, so they tell nothing.
_HYPHEN = re.compile(r"(?<=\w)[-\u00ad\u2010\u2011\u2013](?:[^\S\n]*\n\s*)?(?=\w)")
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts that are compared character by character
_WORD = re.compile(rf"[{_UNSPACED}]|\d+|[^\W\d_{_UNSPACED}]+(?:'[^\W\d_]+)*")
_NUMBER = re.compile(r"\d{1,9}")
_PICTURE_FILE = re.compile(r"[^\s\"(]*[^\s\"(./\\]\.(?:png|jpe?g|gif|svg|webp)\b", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Returns the words of a text in a form that typesetting does not change.

    Case, ligatures, curly quotes and hyphens, be they the author's or a line end's, make no difference. Digits are
    words by themselves, as in formulas nobody can tell where a power begins.

    >>> words("The “ﬁne-\\ntuned” model’s HEAD")
    ['the', 'finetuned', "model's", 'head']
    """
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    return _WORD.findall(_HYPHEN.sub("", plain))


def content_fidelity(given: str, shown: str) -> float | None:
    """Returns how much of a record's text stands in the document, in order: recall over words.

    The longest common subsequence of the words of ``given`` and ``shown``, over the words of ``given``. Names of
    picture files in ``given`` are not counted: the picture is shown, not its name.

    Why: the document must say what the record says. Range: 0 (nothing) to 1 (all of it); None when nothing was given.
    Blind to: what was added or said twice (see `invention`), punctuation, letter case, and where a paragraph breaks.
    A word that is broken over two lines without a hyphen, such as a web address, counts as lost.

    Args:
        given: the record's text.
        shown: the text of the document's pages.
    """
    wanted = words(_PICTURE_FILE.sub(" ", given))
    return LCSseq.similarity(wanted, words(shown)) / len(wanted) if wanted else None


def invention(given: str, pages: Sequence[PageText], reference: Sequence[PageText] = ()) -> float | None:
    """Returns the share of the rendered words that come from neither the record nor the template.

    A word may stand as often as the record has it, or as often as the reference shows it, whichever is more: what a
    reference shows beyond its record (``Page``, ``Figure 1``, a heading on the title page and again on the next) is
    the template's. Running heads and feet count once, and numbers in them not at all, as they repeat on every page.

    Why: a model makes things up, and repeats itself. Range: 0 (nothing of its own) to 1 (all of it); None when nothing
    is shown. Blind to: words that are left out or in another order (see `content_fidelity`). Without a reference, the
    template's own words count as invented.

    Args:
        given: all of the record's values as one text.
        pages: the document's pages.
        reference: the pages of the reference, if there is one.
    """
    shown = _counted(pages)
    allowed = Counter(words(given)) | _counted(reference)
    total = shown.total()
    return (shown - allowed).total() / total if total else None


def _counted(pages: Sequence[PageText]) -> Counter[str]:
    body = Counter(words("\n".join(page.body for page in pages)))
    furniture = {word for page in pages for word in words(page.header) + words(page.footer) if not word.isdigit()}
    return body + Counter(furniture)


def field_presence(
    fields: Mapping[str, str | int], pages: Sequence[PageText], reference: Sequence[PageText] = ()
) -> dict[str, float]:
    """Returns for each field how much it is shown where it belongs.

    With a reference, a field belongs where the reference shows it: in running heads, in the body, in running feet.
    Its score is the share of pages that show it there, compared with the reference's share, at most 1, over these
    places. A field that the reference does not show is left out. Without a reference a field scores 1 when any page
    shows it, else 0.

    A number with ``page`` in its name is that of the first page. With a reference, its score is the share of the
    reference's numbered pages whose number stands in the head or foot of the document's page too. Without one, it is
    the share of the document's pages with a number in head or foot that bear the one that follows from the first.

    Why: a title or year that is missing or wrong is what a reader sees first. Range: 0 to 1 each.
    Blind to: a field shown in a place where the reference does not show it, and how it looks.

    Args:
        fields: the record's short values by name; not the long text.
        pages: the document's pages.
        reference: the pages of the reference, if there is one.
    """
    found = {}
    for name, value in fields.items():
        if isinstance(value, int) and "page" in name:
            other = {int(n) for key, text in fields.items() if key != name for n in _NUMBER.findall(str(text))}
            score = _page_numbers(value, pages, reference, other)
        else:
            score = _shown(words(str(value)), pages, reference)
        if score is not None:
            found[name] = score
    return found


def _shown(value: list[str], pages: Sequence[PageText], reference: Sequence[PageText]) -> float | None:
    if not value:
        return None
    if not reference:
        return float(any(_holds(words(part), value) for page in pages for part in page))
    scores = []
    for place in range(len(PageText._fields)):
        expected = _share(value, reference, place)
        if expected:
            scores.append(min(1.0, _share(value, pages, place) / expected))
    return sum(scores) / len(scores) if scores else None


def _share(value: list[str], pages: Sequence[PageText], place: int) -> float:
    return sum(_holds(words(page[place]), value) for page in pages) / len(pages) if pages else 0.0


def _holds(text: list[str], part: list[str]) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(text)} "


def _page_numbers(
    first: int, pages: Sequence[PageText], reference: Sequence[PageText], other: set[int]
) -> float | None:
    numbers, expected = _furniture_numbers(pages, other), _furniture_numbers(reference, other)
    if reference:
        # The page number is the one that goes up from page to page: its distance to the page's place stays the same.
        distances = Counter(number - index for index, on_page in enumerate(expected) for number in on_page)
        most = max(distances.values(), default=0)
        if most < min(2, len(reference)):
            return None  # nothing goes up
        distance = min((d for d, count in distances.items() if count == most), key=lambda d: abs(d - first), default=0)
        numbered = [index for index, on_page in enumerate(expected) if index + distance in on_page]
    else:
        distance, numbered = first, [index for index, on_page in enumerate(numbers) if on_page]
    if not numbered:
        return None if reference else 0.0
    return sum(i < len(numbers) and i + distance in numbers[i] for i in numbered) / len(numbered)


def _furniture_numbers(pages: Sequence[PageText], other: set[int]) -> list[set[int]]:
    """Returns the numbers in head and foot of each page, but for those of other fields, such as the year."""
    return [{int(n) for n in _NUMBER.findall(f"{page.header} {page.footer}")} - other for page in pages]


def rouge_l(source: str, reference: str) -> float:
    """Returns the F-measure of the longest common subsequence of the words of two sources.

    Why: to compare with other work; it is the usual score of generated text. Range: 0 to 1 (equal). Blind to: whether
    a source compiles. Source: Lin 2004, https://aclanthology.org/W04-1013. Words are what torchmetrics' ROUGEScore
    takes for such; that one needs minutes for long texts.
    """
    first, second = (re.sub(r"[^a-z0-9]+", " ", text.lower()).split() for text in (source, reference))
    common = LCSseq.similarity(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0


def edit_similarity(source: str, reference: str) -> float:
    """Returns 1 minus the Levenshtein distance of two sources over the length of the longer one.

    Why: how much a person would have to type to get the reference. Range: 0 to 1 (equal). Blind to: meaning; two
    sources that look quite different may render to the same pages. By Levenshtein (1966), computed by rapidfuzz, as
    torchmetrics' EditDistance takes seconds a document.
    """
    return Levenshtein.normalized_similarity(source, reference)
