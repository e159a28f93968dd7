"""Random words, names and sentences, as a function of a seed.

Common words come from ``words.txt``, written for this purpose. As many again are composed of syllables, so that a
model has to copy what it reads instead of knowing it. A tenth of all words is held out of training, by a hash of the
word. Words of Typst code are never held out: a model that has seen ``table`` only as code takes it for code.
"""

from __future__ import annotations

import random
import string
import zlib
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files


def _read_lists() -> dict[str, list[str]]:
    """Returns the word lists of ``words.txt`` by their headings."""
    sections = (files("benchmarks.nano") / "words.txt").read_text("utf-8").split("# ")[1:]
    return {section.split()[0]: section.split()[1:] for section in sections}


WORD_LISTS = _read_lists()
DETERMINERS = ("the", "the", "the", "the", "a", "its", "each", "this", "that", "another", "one", "our", "their", "some")
CONNECTORS = ("and", "but", "because", "so", "while", "although", "when", "where", "as", "if")
LOWERCASE_IN_TITLES = ("of", "for", "in", "and", "on", "with")
TYPST_WORDS = ("bottom", "case", "code", "false", "figure", "item", "left", "line", "list", "table", "top")
_SYLLABLES = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sch sk sl sm sn sp st str t th tr v w z",
    "a e i o u ai au ea ei ia ie oa oo ou y",
    "- - - - - b d ft l ld m mp n nd ng p r rk rn s st th x",
)


def is_held_out(word: str) -> bool:
    """Returns whether a word never occurs in training data, as a tenth of all words do."""
    return zlib.crc32(word.lower().encode()) % 10 == 0 and word.lower() not in TYPST_WORDS


def third_person(verb: str) -> str:
    """Returns the third person singular of a verb."""
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


class Writer:
    """Writes words and sentences.

    Args:
        rng: the source of all random choices.
        unseen: choose only held-out words, wherever there is a choice; otherwise only words that are not held out.
        hard: alter half of all common words by a letter or two, so that knowing the words does not help, and repeat
            half of all words, so that a single word does not identify a position in the text.
        brief: write sentences and phrases of a few words.
    """

    def __init__(self, rng: random.Random, unseen: bool = False, hard: bool = False, brief: bool = False) -> None:
        self.rng = rng
        self.unseen = unseen
        self.hard = hard
        self.brief = brief
        self._used: dict[str, list[str]] = defaultdict(list)

    def _is_allowed(self, word: str) -> bool:
        return is_held_out(word) == self.unseen

    def common(self, word_class: str) -> str:
        """Returns a common word of a class: ``nouns``, ``verbs``, ``adjectives`` or ``adverbs``."""
        return self._new_or_repeated(word_class, lambda: self._draw_common(word_class))

    def _new_or_repeated(self, word_class: str, make: Callable[[], str]) -> str:
        if not self.hard:
            return make()
        used = self._used[word_class]
        if not used or self.rng.random() < 0.5:
            used.append(make())
            return used[-1]
        return self.rng.choice(used)

    def _draw_common(self, word_class: str) -> str:
        while True:
            word = self.rng.choice(WORD_LISTS[word_class])
            if self.hard and self.rng.random() < 0.5:
                word = self._altered(word)
            if self._is_allowed(word):
                return word

    def _altered(self, word: str) -> str:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2))):
            position = rng.randrange(len(word))
            letters = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(0, 2)))
            word = word[:position] + letters + word[position + 1 :]
            word = word if len(word) > 1 else word + rng.choice(string.ascii_lowercase)
        return word

    def invented(self, min_syllables: int = 2, max_syllables: int = 3) -> str:
        """Returns a word composed of random syllables."""
        return self._new_or_repeated("invented", lambda: self._from_syllables(min_syllables, max_syllables))

    def _from_syllables(self, min_syllables: int, max_syllables: int) -> str:
        rng = self.rng
        while True:
            count = rng.randint(min_syllables, max_syllables)
            word = "".join(rng.choice(sounds.split()) for _ in range(count) for sounds in _SYLLABLES).replace("-", "")
            if self._is_allowed(word):
                return word

    def noun(self) -> str:
        """Returns a noun; every fourth one is invented."""
        return self.invented() if self.rng.random() < 0.25 else self.common("nouns")

    def name(self) -> str:
        """Returns an invented proper name."""
        return " ".join(self.invented(2, 3).capitalize() for _ in range(self.rng.choice((1, 1, 2))))

    def word_with_symbol(self) -> str:
        """Returns a word containing a symbol or letter that is rare in English, since those must be copied, too."""
        rng = self.rng
        word, symbol = self.invented(), rng.choice("'':;,!?/%&+=()\"éèüöäñçåøß°§–—…")
        position = rng.randint(1, len(word) - 1)
        return word[:position] + symbol + word[position:]

    def number(self) -> str:
        """Returns a number as people write them."""
        rng = self.rng
        value = rng.choice((rng.randint(2, 20), rng.randint(20, 999), rng.randint(1000, 99999)))
        draw = rng.random()
        if draw < 0.15:
            return f"{value / 10:.1f}"
        if draw < 0.25:
            return f"{rng.randint(1, 100)} %"
        return str(value)

    def noun_phrase(self) -> str:
        """Returns a noun with its determiner, number or adjectives."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.08:
            return self.name()
        if draw < 0.16:
            return f"{self.number()} {self.noun()}s"
        if draw < 0.21:
            return f"{rng.choice((self.name(), f'the {self.noun()}'))}'s {self.noun()}"
        if draw < 0.24:
            return self.word_with_symbol()
        parts = [rng.choice(DETERMINERS)]
        parts += [self.common("adjectives")] * (rng.random() < 0.45)
        if rng.random() < 0.06:
            parts.append(f"{self.common('adjectives')}-{self.noun()}")
        return " ".join([*parts, self.noun()])

    def clause(self) -> str:
        """Returns subject, verb, object and prepositional phrases."""
        rng = self.rng
        verb = self.common("verbs")
        parts = [self.noun_phrase(), third_person(verb) if rng.random() < 0.6 else f"can {verb}", self.noun_phrase()]
        if rng.random() < 0.35:
            parts.insert(1, self.common("adverbs"))
        for _ in range(rng.choice((0, 1, 1, 2))):
            parts += [rng.choice(WORD_LISTS["prepositions"]), self.noun_phrase()]
        return " ".join(parts)

    def sentence(self) -> str:
        """Returns a sentence with its final punctuation."""
        rng = self.rng
        if self.brief:
            return f"{self.noun()} {third_person(self.common('verbs'))} {self.noun()}".capitalize() + rng.choice(
                "....?!"
            )
        text = self.clause()
        if rng.random() < 0.3:
            text += f"{rng.choice((',', ',', ';', ''))} {rng.choice(CONNECTORS)} {self.clause()}"
        if rng.random() < 0.06:
            text += f": {self.clause()}"
        if rng.random() < 0.08:
            text += f" ({self.noun_phrase()})"
        if rng.random() < 0.05:
            text += f', which they call "{self.noun()} {self.noun()}"'
        if rng.random() < 0.04:
            text += f" - see {self.name()} {rng.randint(1950, 2030)}"
        if rng.random() < 0.04:
            text += rng.choice(
                (f" at #{rng.randint(1, 99)}", f" for ${rng.randint(2, 900)}", f" in {self.noun()}_{self.noun()}")
            )
        return text[0].upper() + text[1:] + rng.choice("......?!" if rng.random() < 0.2 else ".")

    def title(self, min_words: int = 2, max_words: int = 5) -> str:
        """Returns a heading: a few capitalized words without a period."""
        rng = self.rng
        words = [
            self.common("adjectives") if rng.random() < 0.4 else self.noun()
            for _ in range(rng.randint(min_words, max_words))
        ]
        if len(words) > 2 and rng.random() < 0.5:
            words[-2] = rng.choice(LOWERCASE_IN_TITLES)
        return " ".join(word if word in LOWERCASE_IN_TITLES else word.capitalize() for word in words)

    def phrase(self) -> str:
        """Returns the text of a list item or a caption, without a period."""
        if self.brief:
            return " ".join(self.noun() for _ in range(self.rng.randint(1, 3))).capitalize()
        text = (
            self.clause()
            if self.rng.random() < 0.5
            else f"{self.noun_phrase()} {self.rng.choice(WORD_LISTS['prepositions'])} {self.noun_phrase()}"
        )
        return text[0].upper() + text[1:]
