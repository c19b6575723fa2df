"""One case: which victim, what is done to it, and what it is asked afterwards.

As text, a case is the argument of ``--replay``:

    settled scan raw 12288=ff                     a byte; every answer must be right
    crashed writer sealed 8200=0300 cut=40960     checksums made right again up to the meta pages
    settled check raw 12288=page5 16384=old2:4    whole pages: page 5, and page 4 of the older image 2
    settled get raw 8192=zero512                  a sector of zeros

Raw damage is what disks do: the checksums show it.  Sealed damage is what a
forger does: wrong values may come out, but nothing worse.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cowdb.checksum import crc32c
from fuzz.corrupt_victim import Victim, corpus, victim

if TYPE_CHECKING:
    from fuzz.corrupt_bench import Bench

__all__ = ["Case", "Edit", "apply", "find_victim", "parse"]

_AT_CHECKSUM: Final = 18  # in a reference

Edit = tuple[int, bytes | str]
"""An offset in the file, and the bytes that are put there, or their name."""


@dataclass(frozen=True)
class Case:
    """See the module's text."""

    victim: str
    target: str
    edits: tuple[Edit, ...]
    sealed: bool = False
    cut: int | None = None

    def __str__(self) -> str:
        parts = [self.victim, self.target, "sealed" if self.sealed else "raw"]
        parts += [f"{at}={what if isinstance(what, str) else what.hex()}" for at, what in self.edits]
        if self.cut is not None:
            parts.append(f"cut={self.cut}")
        return " ".join(parts)

    @property
    def strict(self) -> bool:
        """Whether every answer has to be right."""
        return not self.sealed and self.victim != "bomb" and not self.target.startswith("unverified")


def parse(text: str) -> Case:
    """The case that `text` describes.  Raises `ValueError`."""
    try:
        name, target, how, *rest = text.split()
        edits: list[Edit] = []
        cut = None
        for part in rest:
            at, _, what = part.partition("=")
            if at == "cut":
                cut = int(what)
            elif what.startswith(("page", "old", "zero")):
                edits.append((int(at), what))
            else:
                edits.append((int(at), bytes.fromhex(what)))
    except ValueError as error:
        raise ValueError(f"not a case: {text!r} ({error})") from None
    if how not in ("raw", "sealed"):
        raise ValueError(f"not a case: {text!r} (it is neither raw nor sealed)")
    return Case(name, target, tuple(edits), how == "sealed", cut)


def find_victim(name: str) -> Victim:
    """The victim of this name, or the file of the corpus."""
    for one in corpus():
        if one.name == name:
            return one
    return victim(name)


def bytes_of(of: Victim, what: bytes | str) -> bytes:
    """The bytes that an edit names."""
    if isinstance(what, bytes):
        return what
    size = of.page_size
    if what.startswith("zero"):
        return bytes(int(what[4:]))
    image = of.raw
    if what.startswith("old"):
        which, _, number = what[3:].partition(":")
        image = of.older[int(which)]
    else:
        number = what[4:]
    return image[int(number) * size : (int(number) + 1) * size].ljust(size, b"\0")


@functools.lru_cache(maxsize=4096)
def _plan(name: str, pages: frozenset[int]) -> list[int]:
    return find_victim(name).anatomy.ancestors(pages)


def apply(case: Case, of: Victim, bench: Bench) -> None:
    """Do the damage to the bench's file."""
    for offset, what in case.edits:
        bench.patch(offset, bytes_of(of, what))
    if case.sealed:
        _seal(of, bench, frozenset(offset // of.page_size for offset, _ in case.edits))
    if case.cut is not None:
        bench.cut(case.cut)


def _seal(of: Victim, bench: Bench, pages: frozenset[int]) -> None:
    """Put right checksums into these pages and into every reference that leads to them, up to the meta pages."""
    size = of.page_size
    links = of.anatomy.links
    spans = of.anatomy.spans
    area = bench.area
    for page in _plan(of.name, pages):
        start = page * size
        raw = crc32c(area[start + 4 : start + spans.get(page, 1) * size]).to_bytes(4, "little")
        bench.patch(start, raw)
        for parent, offset in links.get(page, ()):
            bench.patch(parent * size + offset + _AT_CHECKSUM, raw)
