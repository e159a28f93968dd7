"""Scores of one document as pure functions of text, without torch or Lightning.

They score what a reader sees, the text layer of the rendered pages, rather than the source: text that is hidden, or
destroyed by wrong markup, does not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set

from rapidfuzz.distance import LCSseq, Levenshtein

from typst_lit.typesetting.results import PageText

# Hyphens within a word, also at the end of a line. Typesetting adds hyphens, so none of them is compared.
# Two are an en dash in Typst.
_HYPHEN = re.compile(r"(?<=\w)(?:-{1,2}|[\u00ad\u2010\u2011\u2013])(?:[^\S\n]*\n\s*)?(?=\w)")
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts without spaces, compared character by character
_WORD = re.compile(rf"[{_UNSPACED}]|\d+|[^\W\d_{_UNSPACED}]+(?:'[^\W\d_]+)*")
_NUMBER = re.compile(r"\d{1,9}")
IMAGE_FILE = re.compile(r"[^\s\"(]*[^\s\"(./\\]\.(?:png|jpe?g|gif|svg|webp)\b", re.IGNORECASE)
MAX_WORD_PARTS = 12  # of a word that is broken over lines, such as a URL in a narrow column
MIN_TOUCHING_LETTERS = 2  # of each of two words that touch on the page


def words(text: str) -> list[str]:
    """Returns the words of a text in a form that typesetting does not change.

    Case, ligatures, curly quotes and hyphens make no difference, whether the author or a line break put them there.
    Digits are separate words, because the text of a formula does not show where an exponent begins.

    >>> words("The “ﬁne-\\ntuned” model’s HEAD")
    ['the', 'finetuned', "model's", 'head']
    """
    normalized = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    return _WORD.findall(_HYPHEN.sub("", normalized))


def without_image_files(text: str) -> str:
    """Returns a record's text without the names of image files: a document shows the image and not its name.

    >>> without_image_files("See (figures/rain.png).")
    'See ( ).'
    """
    return IMAGE_FILE.sub(" ", text)


def restore_words(shown: Sequence[str], known: Set[str]) -> list[str]:
    """Returns the words of a document as they were before they were typeset.

    A word that was broken over lines without a hyphen is joined, and two words that touch on the page, such as the ends
    of a long header, are separated.

    Args:
        shown: the words of the document.
        known: the words that it may have. Numbers are never joined, because two of them often are neighbors.

    >>> restore_words(["see", "exam", "ple", "org", "chemistrypage"], {"see", "example", "org", "chemistry", "page"})
    ['see', 'example', 'org', 'chemistry', 'page']
    """
    restored, start = list[str](), 0
    while start < len(shown):
        size = 1
        if start + 1 < len(shown) and (shown[start] not in known or shown[start + 1] not in known):
            sizes = range(2, min(MAX_WORD_PARTS, len(shown) - start) + 1)
            size = next((size for size in sizes if _is_broken(shown[start : start + size], known)), 1)
        word = "".join(shown[start : start + size])
        restored += [word] if word in known else _separate(word, known)
        start += size
    return restored


def _is_broken(parts: Sequence[str], known: Set[str]) -> bool:
    return "".join(parts) in known and not any(part.isdigit() for part in parts)


def _separate(word: str, known: Set[str]) -> list[str]:
    ends = range(MIN_TOUCHING_LETTERS, len(word) - MIN_TOUCHING_LETTERS + 1)
    end = next((end for end in ends if word[:end] in known and word[end:] in known), len(word))
    return [word[:end], word[end:]] if end < len(word) else [word]


def content_fidelity(record_text: str, document_text: str) -> float | None:
    """Returns how much of a record's text the document shows, in order: recall over words.

    The score is the length of the longest common subsequence of their words, divided by the number of words of the
    record. Names of image files in the record do not count (`without_image_files`).

    Why: a document must say what its record says. Range: 0 (nothing) to 1 (everything); None when the record has no
    words.
    Blind to: text that was added or repeated (see `invention`), punctuation, letter case, and paragraph breaks.

    Args:
        record_text: the record's long text.
        document_text: the text of the document's pages.

    >>> content_fidelity("The cat sat on the mat.", "The cat\\nsat on a mat.")
    0.8333333333333334
    """
    expected = words(without_image_files(record_text))
    shown = restore_words(words(document_text), set(expected))
    return LCSseq.similarity(expected, shown) / len(expected) if expected else None


def invention(record_text: str, pages: Sequence[PageText], reference: Sequence[PageText] = ()) -> float | None:
    """Returns the hallucination rate: the share of the rendered words that come from neither record nor template.

    A word may occur as often as in the record or as often as in the reference, whichever is more. What the reference
    shows in addition to its record belongs to the template: ``Page``, ``Figure 1``, a heading that is repeated on the
    title page. Words of headers and footers count once and numbers in them do not count, because they repeat on every
    page.

    Why: models invent text and repeat themselves. Range: 0 (nothing invented) to 1 (everything); None when the document
    shows no words. Blind to: missing words and their order (see `content_fidelity`). Without a reference, the words of
    the template count as invented.

    Args:
        record_text: all values of the record as one text.
        pages: the document's pages.
        reference: the pages of the reference, if there is one.

    >>> reference = [PageText("", "The cat sat.", "Page 1")]
    >>> invention("The cat sat.", [PageText("", "The cat sat down.", "Page 1")], reference)
    0.2
    """
    shown = _word_counts(pages)
    allowed = Counter(words(record_text)) | _word_counts(reference)
    num_shown = shown.total()
    return (shown - allowed).total() / num_shown if num_shown else None


def _word_counts(pages: Sequence[PageText]) -> Counter[str]:
    body = Counter(words("\n".join(page.body for page in pages)))
    repeated = {word for page in pages for word in words(page.header) + words(page.footer) if not word.isdigit()}
    return body + Counter(repeated)


def field_presence(
    fields: Mapping[str, str | int], pages: Sequence[PageText], reference: Sequence[PageText] = ()
) -> dict[str, float]:
    """Returns, for each field, how much it is shown where it belongs.

    With a reference, a field belongs to the parts of the page (header, body, footer) in which the reference shows it.
    For each part, the share of the document's pages that show the field there is divided by the reference's share, at
    most 1; the score is the mean over these parts. A field that the reference does not show is left out. Without a
    reference, the score is 1 when any page shows the field, else 0.

    An integer field with ``page`` in its name is the number of the first page. With a reference, its score is the share
    of the reference's numbered pages whose number is also in the header or footer of the document's page. Without one,
    it is the share of the document's pages with numbers in header or footer that have the right one.

    Why: a missing or wrong title or year is the first thing a reader sees. Range: 0 to 1 each. Blind to: a field shown
    in a part where the reference does not show it, and what it looks like.

    Args:
        fields: the record's short values by name, without the long text.
        pages: the document's pages.
        reference: the pages of the reference, if there is one.

    >>> field_presence({"title": "Hill Farms", "year": "2025"}, [PageText("Hill Farms", "A report", "Page 1")])
    {'title': 1.0, 'year': 0.0}
    """
    scores = {}
    for name, value in fields.items():
        if isinstance(value, int) and "page" in name:
            other_texts = [str(text) for key, text in fields.items() if key != name]
            excluded = {int(number) for text in other_texts for number in _NUMBER.findall(text)}
            score = _page_number_score(value, pages, reference, excluded)
        else:
            score = _presence_score(words(str(value)), pages, reference)
        if score is not None:
            scores[name] = score
    return scores


def _presence_score(value: list[str], pages: Sequence[PageText], reference: Sequence[PageText]) -> float | None:
    if not value:
        return None
    if not reference:
        return float(any(_contains(words(text), value) for page in pages for text in page))
    scores = []
    for part in range(len(PageText._fields)):
        expected = _share_of_pages(value, reference, part)
        if expected:
            scores.append(min(1.0, _share_of_pages(value, pages, part) / expected))
    return sum(scores) / len(scores) if scores else None


def _share_of_pages(value: list[str], pages: Sequence[PageText], part: int) -> float:
    return sum(_contains(words(page[part]), value) for page in pages) / len(pages) if pages else 0.0


def _contains(text: list[str], phrase: list[str]) -> bool:
    return f" {' '.join(phrase)} " in f" {' '.join(text)} "


def _page_number_score(
    first_page: int, pages: Sequence[PageText], reference: Sequence[PageText], excluded: set[int]
) -> float | None:
    numbers, expected = _repeated_numbers(pages, excluded), _repeated_numbers(reference, excluded)
    if reference:
        # The page number is the number that increases with the index of the page: their difference is constant.
        offsets = Counter(number - index for index, on_page in enumerate(expected) for number in on_page)
        max_count = max(offsets.values(), default=0)
        if max_count < min(2, len(reference)):
            return None  # no number increases
        most_common = [offset for offset, count in offsets.items() if count == max_count]
        offset = min(most_common, key=lambda offset: abs(offset - first_page), default=0)
        numbered = [index for index, on_page in enumerate(expected) if index + offset in on_page]
    else:
        offset, numbered = first_page, [index for index, on_page in enumerate(numbers) if on_page]
    if not numbered:
        return None if reference else 0.0
    return sum(i < len(numbers) and i + offset in numbers[i] for i in numbered) / len(numbered)


def _repeated_numbers(pages: Sequence[PageText], excluded: set[int]) -> list[set[int]]:
    """Returns the numbers in header and footer of each page, without those of other fields, such as the year."""
    return [{int(number) for number in _NUMBER.findall(f"{page.header} {page.footer}")} - excluded for page in pages]


def rouge_l(source: str, reference: str) -> float:
    """Returns ROUGE-L: the F-measure of the longest common subsequence of the words of two sources.

    Why: it is the usual score of generated text, for comparison with other work. Range: 0 to 1 (equal). Blind to:
    whether a source compiles. Source: Lin 2004, https://aclanthology.org/W04-1013. Words are those of torchmetrics'
    ROUGEScore, which needs minutes for long texts.

    >>> rouge_l("The cat sat.", "The *cat* sat down.")
    0.8571428571428571
    """
    first, second = (re.sub(r"[^a-z0-9]+", " ", text.lower()).split() for text in (source, reference))
    common = LCSseq.similarity(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0


def edit_similarity(source: str, reference: str) -> float:
    """Returns 1 minus the Levenshtein distance of two sources, divided by the length of the longer one.

    Why: it shows how much a person would have to edit to get the reference. Range: 0 to 1 (equal). Blind to: meaning;
    two very different sources may render to the same pages. Source: Levenshtein 1966, computed by rapidfuzz, because
    torchmetrics' EditDistance takes seconds per document.

    >>> edit_similarity("= Title", "= Titles")
    0.875
    """
    return Levenshtein.normalized_similarity(source, reference)
