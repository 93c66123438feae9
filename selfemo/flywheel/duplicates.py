"""Finds near-duplicates among kept texts without comparing all pairs.

Two texts are near-duplicates if the Jaccard similarity of their word sets reaches a threshold t. Then, with
words sorted by one fixed order, the first n - ceil(t n) + 1 words of the one and of the other share a word
(prefix filtering: Chaudhuri et al., ICDE 2006). Rare words come first in that order, so an index from prefix
words to texts finds few candidates, and each of them is compared exactly. Word sets of equal size that may
differ in no word at all (at t = 0.9, all sets below 19 words) are looked up whole.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from hashlib import blake2b

from selfemo.corpora.words import words

_EPSILON = 1e-9
WORD_BYTES = 8
"""Of a word in a `word_set`."""


class NearDuplicates:
    """A growing set of texts, with a test whether a text is a near-duplicate of one of them."""

    def __init__(self, threshold: float, known_texts: Iterable[str] = ()) -> None:
        """Fix the threshold and the order of words.

        Args:
            threshold: Jaccard similarity from which texts count as duplicates; 0 makes every text one, 1 asks
                for equal word sets.
            known_texts: training texts, whose word counts fix the order of words; an unknown word is rarer
                than all of them.
        """
        self._threshold = threshold
        self._counts = Counter(word for text in known_texts for word in set(words(text)))
        self._texts: list[bytes] = []
        self._index: dict[tuple[int, int], list[int]] = {}
        self._sets: set[bytes] = set()
        self._searches: dict[int, tuple[tuple[int, ...], int]] = {}
        self._wordless = False

    def __len__(self) -> int:
        """Return the number of different word sets added."""
        return len(self._sets) + self._wordless

    def word_set(self, text: str) -> bytes:
        """Return the text's distinct words as 63-bit numbers, rarest first: equal for equal sets.

        Any instance with the same known texts can compare it. It takes most of the time of a comparison.
        """
        ordered = sorted(set(words(text)), key=lambda word: (self._counts[word], word))
        return array("q", map(_number, ordered)).tobytes()

    def add(self, text: str) -> None:
        self.add_words(self.word_set(text))

    def holds(self, text: str) -> bool:
        """Tell whether a text that was added is a near-duplicate of this one."""
        return self.holds_words(self.word_set(text))

    def add_words(self, word_set: bytes) -> None:
        """Add the text of a `word_set`."""
        if not word_set:
            self._wordless = True
            return
        self._sets.add(word_set)
        sizes, prefix = self._search(len(word_set) // WORD_BYTES)
        if not sizes:
            return  # such sets are looked up whole, and found by no other size
        ordered = array("q", word_set)
        for word in ordered[:prefix]:
            self._index.setdefault((word, len(ordered)), []).append(len(self._texts))
        self._texts.append(word_set)

    def holds_words(self, word_set: bytes) -> bool:
        """Tell whether a text that was added is a near-duplicate of that of a `word_set`."""
        if not word_set:
            return self._wordless
        if self._threshold <= 0:
            return len(self) > 0
        if word_set in self._sets:
            return True
        sizes, prefix = self._search(len(word_set) // WORD_BYTES)
        if not sizes:
            return False
        ordered = array("q", word_set)
        first, seen, own = ordered[:prefix], set(), set(ordered)
        for size in sizes:
            for word in first:
                for place in self._index.get((word, size), ()):
                    if place not in seen:
                        seen.add(place)
                        if self._similar(own, array("q", self._texts[place])):
                            return True
        return False

    def _search(self, size: int) -> tuple[tuple[int, ...], int]:
        """Return the sizes of sets that one of `size` words is compared with, and its prefix in words."""
        if size not in self._searches:
            threshold = self._threshold
            smallest = math.ceil(threshold * size - _EPSILON)
            largest = math.floor(size / threshold + _EPSILON) if threshold > 0 else size
            # of equal size, sets that differ by one word may be too far apart already
            whole = (size - 1) < threshold * (size + 1) - _EPSILON
            sizes = (other for other in range(max(1, smallest), largest + 1) if not (whole and other == size))
            self._searches[size] = tuple(sizes), size - smallest + 1
        return self._searches[size]

    def _similar(self, own: set[int], other: Collection[int]) -> bool:
        shared = sum(word in own for word in other)
        return shared >= self._threshold * (len(own) + len(other) - shared) - _EPSILON


def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big") >> 1
