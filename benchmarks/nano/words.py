"""Words, names and sentences out of nothing but a seed.

Common words come from ``words.txt``, written for this purpose. As many again are made of syllables, so that a model
has to copy what it reads instead of knowing it. A tenth of all words is kept out of training, by a hash of the word,
but none that Typst's own code is written with: who has met ``table`` as code only takes it for code.
"""

from __future__ import annotations

import random
import string
import zlib
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files


def _read_lists() -> dict[str, list[str]]:
    """Returns the lists of ``words.txt`` by their headings."""
    sections = (files("benchmarks.nano") / "words.txt").read_text("utf-8").split("# ")[1:]
    return {section.split()[0]: section.split()[1:] for section in sections}


LISTS = _read_lists()
DETERMINERS = ("the", "the", "the", "the", "a", "its", "each", "this", "that", "another", "one", "our", "their", "some")
CONNECTORS = ("and", "but", "because", "so", "while", "although", "when", "where", "as", "if")
SMALL_WORDS = ("of", "for", "in", "and", "on", "with")
TYPST_WORDS = ("bottom", "case", "code", "false", "figure", "item", "left", "line", "list", "table", "top")
_SYLLABLES = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sch sk sl sm sn sp st str t th tr v w z",
    "a e i o u ai au ea ei ia ie oa oo ou y",
    "- - - - - b d ft l ld m mp n nd ng p r rk rn s st th x",
)


def is_kept_out(word: str) -> bool:
    """Returns whether a word never occurs in training data: true of every tenth."""
    return zlib.crc32(word.lower().encode()) % 10 == 0 and word.lower() not in TYPST_WORDS


def third_person(verb: str) -> str:
    """Returns a verb as he, she and it have it."""
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


class Writer:
    """Writes words and sentences.

    Args:
        rng: where all choice comes from.
        unseen: write only with words that are kept out of training, where a choice is free; else only with the others.
        hard: alter half of all common words by a letter or two, so that to know them is no help, and use half of all
            words again, so that a place in the text is known by more than one word.
        brief: write sentences and phrases of a few words.
    """

    def __init__(self, rng: random.Random, unseen: bool = False, hard: bool = False, brief: bool = False) -> None:
        self.rng = rng
        self.unseen = unseen
        self.hard = hard
        self.brief = brief
        self._used: dict[str, list[str]] = defaultdict(list)

    def _admitted(self, word: str) -> bool:
        return is_kept_out(word) == self.unseen

    def of(self, kind: str) -> str:
        """Returns a common word: one of the ``nouns``, ``verbs``, ``adjectives`` or ``adverbs``."""
        return self._anew_or_again(kind, lambda: self._common(kind))

    def _anew_or_again(self, kind: str, make: Callable[[], str]) -> str:
        if not self.hard:
            return make()
        used = self._used[kind]
        if not used or self.rng.random() < 0.5:
            used.append(make())
            return used[-1]
        return self.rng.choice(used)

    def _common(self, kind: str) -> str:
        while True:
            word = self.rng.choice(LISTS[kind])
            if self.hard and self.rng.random() < 0.5:
                word = self._altered(word)
            if self._admitted(word):
                return word

    def _altered(self, word: str) -> str:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(len(word))
            letters = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(0, 2)))
            word = word[:place] + letters + word[place + 1 :]
            word = word if len(word) > 1 else word + rng.choice(string.ascii_lowercase)
        return word

    def invented(self, least: int = 2, most: int = 3) -> str:
        """Returns a word made of so many syllables."""
        return self._anew_or_again("invented", lambda: self._from_syllables(least, most))

    def _from_syllables(self, least: int, most: int) -> str:
        rng = self.rng
        while True:
            count = rng.randint(least, most)
            word = "".join(rng.choice(sounds.split()) for _ in range(count) for sounds in _SYLLABLES).replace("-", "")
            if self._admitted(word):
                return word

    def noun(self) -> str:
        """Returns a noun, every fourth one invented."""
        return self.invented() if self.rng.random() < 0.25 else self.of("nouns")

    def name(self) -> str:
        """Returns the name of a person, a place or a thing."""
        return " ".join(self.invented(2, 3).capitalize() for _ in range(self.rng.choice((1, 1, 2))))

    def odd_word(self) -> str:
        """Returns a word with a mark or a letter in it that English seldom has: any such must be copied, too."""
        rng = self.rng
        word, mark = self.invented(), rng.choice("'':;,!?/%&+=()\"éèüöäñçåøß°§–—…")
        place = rng.randint(1, len(word) - 1)
        return word[:place] + mark + word[place:]

    def number(self) -> str:
        """Returns a number as people write them."""
        rng = self.rng
        value = rng.choice((rng.randint(2, 20), rng.randint(20, 999), rng.randint(1000, 99999)))
        kind = rng.random()
        if kind < 0.15:
            return f"{value / 10:.1f}"
        if kind < 0.25:
            return f"{rng.randint(1, 100)} %"
        return str(value)

    def group(self) -> str:
        """Returns a noun with what goes before it."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.08:
            return self.name()
        if draw < 0.16:
            return f"{self.number()} {self.noun()}s"
        if draw < 0.21:
            return f"{rng.choice((self.name(), f'the {self.noun()}'))}'s {self.noun()}"
        if draw < 0.24:
            return self.odd_word()
        parts = [rng.choice(DETERMINERS)]
        parts += [self.of("adjectives")] * (rng.random() < 0.45)
        if rng.random() < 0.06:
            parts.append(f"{self.of('adjectives')}-{self.noun()}")
        return " ".join([*parts, self.noun()])

    def clause(self) -> str:
        """Returns subject, verb and what follows."""
        rng = self.rng
        verb = self.of("verbs")
        parts = [self.group(), third_person(verb) if rng.random() < 0.6 else f"can {verb}", self.group()]
        if rng.random() < 0.35:
            parts.insert(1, self.of("adverbs"))
        for _ in range(rng.choice((0, 1, 1, 2))):
            parts += [rng.choice(LISTS["prepositions"]), self.group()]
        return " ".join(parts)

    def sentence(self) -> str:
        """Returns a sentence with its full stop."""
        rng = self.rng
        if self.brief:
            return f"{self.noun()} {third_person(self.of('verbs'))} {self.noun()}".capitalize() + rng.choice("....?!")
        text = self.clause()
        if rng.random() < 0.3:
            text += f"{rng.choice((',', ',', ';', ''))} {rng.choice(CONNECTORS)} {self.clause()}"
        if rng.random() < 0.06:
            text += f": {self.clause()}"
        if rng.random() < 0.08:
            text += f" ({self.group()})"
        if rng.random() < 0.05:
            text += f', which they call "{self.noun()} {self.noun()}"'
        if rng.random() < 0.04:
            text += f" - see {self.name()} {rng.randint(1950, 2030)}"
        if rng.random() < 0.04:
            text += rng.choice(
                (f" at #{rng.randint(1, 99)}", f" for ${rng.randint(2, 900)}", f" in {self.noun()}_{self.noun()}")
            )
        return text[0].upper() + text[1:] + rng.choice("......?!" if rng.random() < 0.2 else ".")

    def title(self, least: int = 2, most: int = 5) -> str:
        """Returns a heading: few words, capitals, no full stop."""
        rng = self.rng
        words = [self.of("adjectives") if rng.random() < 0.4 else self.noun() for _ in range(rng.randint(least, most))]
        if len(words) > 2 and rng.random() < 0.5:
            words[-2] = rng.choice(("of", "for", "in", "and", "on", "with"))
        return " ".join(
            word if word in ("of", "for", "in", "and", "on", "with") else word.capitalize() for word in words
        )

    def phrase(self) -> str:
        """Returns what a list item or a caption says: no full stop."""
        if self.brief:
            return " ".join(self.noun() for _ in range(self.rng.randint(1, 3))).capitalize()
        text = (
            self.clause()
            if self.rng.random() < 0.5
            else f"{self.group()} {self.rng.choice(LISTS['prepositions'])} {self.group()}"
        )
        return text[0].upper() + text[1:]
