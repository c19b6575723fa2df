"""Which states a power cut may leave: the crash model, page by page.

This is the model of `docs/crash-model.md` for one file that the engine writes in
whole pages, made to be brought forward step by step at little cost.  It begins
in any `Situation`, so that a second crash can follow the first.  A test compares it
with `cowdb.testing`, state by state.

    durable     [a]      [c]      [d e]        d or e: an earlier crash has left it open
    written           b        f
    page         5     5   7      9            5: a b    7: c f    9: d e

With sectors smaller than a page, a page may be any mixture of its versions.  A flush
that failed leaves what was written before it open for good, until it is written again.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Final

from fuzz.crash_disk import PAGE, SIZE, ZEROS, Situation, Step

__all__ = ["Doubt"]

MIXTURES: Final = 32
"""Mixtures of sectors that are tried of one page; if there are more, some are drawn."""

_WORD: Final = 8


class Doubt:
    """The states of a file after each step of a trace, if the power were cut there.

    `sector` is 512 or 4096 bytes.  `hostile` adds zeros, garbage and tears to every page in doubt.
    """

    def __init__(self, start: Situation, *, sector: int = PAGE, hostile: bool = False, seed: int = 0) -> None:
        assert len(start.sizes) == 1
        self._sector = sector
        self._hostile = hostile
        self._seed = seed
        self._index = 0
        self._pages: dict[int, tuple[bytes, ...]] = dict(start.pages)
        self._durable: dict[int, tuple[bytes, ...]] = dict(start.pages)
        self._written: dict[int, list[tuple[int, bytes]]] = {}
        self._size = start.sizes[0]
        self._sizes: list[tuple[int, int]] = []
        self._length = start.sizes[0]
        self._begun: dict[int, int] = {}
        self._clean = -1  # a flush that failed has marked all that was written up to this step as written
        self._open: dict[int, int] = {}  # pages in doubt, and how many contents each may have
        self._key = 0
        for number, contents in start.pages.items():
            self._note(number, contents)
        self.drawn = 0
        """Pages of which only some mixtures of sectors were taken."""

    def settle(self, met: list[tuple[int, int]]) -> None:
        """Before the first step: of the pages that a run has looked at, it saw these contents."""
        for number, seen in met:
            if number != SIZE and number in self._pages:
                chosen = tuple(content for content in self._pages[number] if hash(content) == seen)
                self._durable[number] = chosen
                self._set(number, chosen)

    def situation(self) -> Situation:
        """The states now. O(pages)."""
        return Situation(self._all_sizes(), dict(self._pages))

    def key(self) -> tuple[int, tuple[int, ...]]:
        """Equal for equal situations, and for hardly any others. O(1)."""
        return self._key, self._all_sizes()

    def count(self, limit: int) -> int:
        """How many states there are now, counted up to `limit`. O(pages in doubt)."""
        total = 0
        for size in self._all_sizes():
            product = 1
            for number, contents in self._open.items():
                if number < size:
                    product *= contents
                    if product >= limit:
                        return limit
            total += product
        return min(total, limit)

    def _all_sizes(self) -> tuple[int, ...]:
        if not self._sizes:
            return (self._size,)
        return tuple({self._size: None, **{size: None for _, size in self._sizes}})

    def _set(self, number: int, contents: tuple[bytes, ...]) -> None:
        before = self._pages.get(number)
        if before is not None:
            self._key ^= hash((number, before))
        self._pages[number] = contents
        self._note(number, contents)

    def _note(self, number: int, contents: tuple[bytes, ...]) -> None:
        self._key ^= hash((number, contents))
        if len(contents) > 1:
            self._open[number] = len(contents)
        else:
            self._open.pop(number, None)

    def apply(self, step: Step) -> None:
        """Go on by one step."""
        kind, number, data = step
        if kind == "write":
            first = number // PAGE
            if first > self._length:
                self._grow(first)
            for at in range(0, len(data), PAGE):
                self._add(first + at // PAGE, data[at : at + PAGE])
            end = first + len(data) // PAGE
            if end > self._length:
                self._length = end
                self._sizes.append((self._index, end))
        elif kind == "size":
            pages = number // PAGE
            if pages > self._length:
                self._grow(pages)
            self._length = pages
            self._sizes.append((self._index, pages))
        elif kind == "begin":
            self._begun[number] = self._index
        elif kind == "failed":
            self._clean = self._begun.pop(number) - 1
        else:
            self._flushed(self._begun.pop(number))
        self._index += 1

    def _grow(self, pages: int) -> None:
        """New space holds zeros, or until a flush what lay there before an earlier cut."""
        for number in range(self._length, pages):
            if number in self._durable or number in self._written:
                self._add(number, ZEROS)
        self._length = pages

    def _add(self, number: int, content: bytes) -> None:
        self._written.setdefault(number, []).append((self._index, content))
        self._mix(number)

    def _flushed(self, began: int) -> None:
        reach = 0
        for number, versions in list(self._written.items()):
            before = [(made, content) for made, content in versions if made < began]
            if not before or before[-1][0] <= self._clean:
                continue
            reach = max(reach, number + 1)
            self._durable[number] = (before[-1][1],)
            later = [(made, content) for made, content in versions if made >= began]
            if later:
                self._written[number] = later
            else:
                del self._written[number]
            self._mix(number)
        sizes = [(made, size) for made, size in self._sizes if made < began]
        if sizes and sizes[-1][0] > self._clean:
            self._size = sizes[-1][1]
            self._sizes = [(made, size) for made, size in self._sizes if made >= began]
        else:
            # Data that is on disk lies inside the file, even if an earlier flush lost the size.
            reach = min(reach, self._length)
            self._size = max(self._size, reach)
            self._sizes = [(made, max(size, reach)) for made, size in self._sizes]

    # ------------------------------------------------------------ mixtures

    def _mix(self, number: int) -> None:
        """Find again what page `number` may hold."""
        durable = self._durable.get(number, (ZEROS,))
        written = [content for _, content in self._written.get(number, ())]
        if not written:
            self._set(number, durable)
            return
        found: dict[bytes, None] = dict.fromkeys(durable)
        if self._sector < PAGE:
            for base in durable:
                found.update(dict.fromkeys(self._mixtures(number, [base, *written])))
        found.update(dict.fromkeys(written))
        if self._hostile and len(found) > 1:
            newest = written[-1]
            found.update(dict.fromkeys(self._spoiled(number, list(found))))
            del found[newest]
            found[newest] = None
        self._set(number, tuple(found))

    def _mixtures(self, number: int, versions: list[bytes]) -> list[bytes]:
        size = self._sector
        choices = [tuple(dict.fromkeys(one[at : at + size] for one in versions)) for at in range(0, PAGE, size)]
        if math.prod(map(len, choices)) <= MIXTURES:
            return [b"".join(parts) for parts in itertools.product(*choices)]
        self.drawn += 1
        rng = random.Random(f"{self._seed} {number} {len(versions)} {hash_of(versions)}")
        drawn = []
        for at, parts in enumerate(choices):  # one sector old among new, and one new among old
            if len(parts) > 1:
                drawn.append(b"".join(one[0] if at == place else one[-1] for place, one in enumerate(choices)))
                drawn.append(b"".join(one[-1] if at == place else one[0] for place, one in enumerate(choices)))
        while len(drawn) < MIXTURES:
            drawn.append(b"".join(rng.choice(parts) for parts in choices))
        return drawn

    def _spoiled(self, number: int, versions: list[bytes]) -> list[bytes]:
        rng = random.Random(f"{self._seed} {number} {hash_of(versions)}")
        newest, other = versions[-1], rng.choice(versions[:-1])
        edge = _WORD * rng.randrange(1, PAGE // _WORD)
        words = b"".join(rng.choice((newest, other))[at : at + _WORD] for at in range(0, PAGE, _WORD))
        return [ZEROS, rng.randbytes(PAGE), newest[:edge] + other[edge:], words]


def hash_of(versions: list[bytes]) -> int:
    """A number for these contents that is the same in every process."""
    total = 0
    for content in versions:
        total = (total * 31 + int.from_bytes(content[:4], "little")) & 0xFFFFFFFF
    return total
