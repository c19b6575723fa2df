"""How long the data file is: it grows before pages are written, and gives free space at its end back.

    0                   page count        backed      end of the file
    |  pages of the state   |  real blocks  |  a hole   |
                            '---- to delete with on a full disk

Growth is geometric, so that n pages cost O(log n) calls, and sparse, so that it
costs no disk.  The mapping is made anew, whole; an older one lives as long as
somebody reads through it.  The file is cut only above the page count of every
state that anybody may look at (P9), since a byte behind the end must never be
touched: the kernel would answer with a signal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cowdb.allocation import spare_pages
from cowdb.kernel import Space, size_of
from cowdb.poison import NO_ROOM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowdb.meta import Meta
    from cowdb.poison import Poison
    from cowdb.storage import Storage

__all__ = ["Extent"]

GROWTH_LIMIT: Final = 1 << 30
"""The file grows by at most this many bytes more than it needs."""

LEAST_GROWTH: Final = 8
"""... and by at least this many pages."""


class Extent:
    """The file's length, and mappings of the whole of it. Who grows or cuts it has the writer lock."""

    def __init__(self, storage: Storage, poison: Poison, *, verify: bool) -> None:
        """`verify` is what its mappings are told; `begin` says how large a page is."""
        self.storage = storage
        self._poison = poison
        self._verify = verify
        self.page_size = 0
        self.max_pages: int | None = None
        self.pages = 0  # of the file
        self._enough: tuple[int, int] | None = None  # page count and ready pages for which nothing was to do last
        self.perhaps_long = True  # false: not worth cutting, for the state that it was last grown for
        self.backed = 0  # pages from the start of the file that have blocks of the disk

    def begin(self, meta: Meta, max_size: int | None) -> None:
        """Take page size and limit from the first state."""
        self.page_size = meta.page_size
        self.max_pages = None if max_size is None else max_size // meta.page_size
        self.backed = meta.page_count
        self.look()

    def look(self) -> None:
        """Another process may have changed the file's length."""
        pages = size_of(self.storage) // self.page_size
        if pages != self.pages:
            self.pages = pages
            self.backed = min(self.backed, pages)
            self.forget()

    def forget(self) -> None:
        """What was found out for the last state does not hold: the next growth, and the next cut, look anew."""
        self._enough = None
        self.perhaps_long = True

    # ------------------------------------------------------------ growing

    def grow(self, page_count: int, *, inserted: bool, ready_pages: int, closely: bool = False) -> None:
        """Make the file hold `page_count` pages. It grows geometrically; the new part is sparse.

        `closely`: by no more than is asked for, as by a transaction that writes early, much at a time.

        A transaction that put something in (`inserted`) leaves real blocks behind
        the pages that it would take to delete, less the `ready_pages` that are free
        already: on a full disk, too, deleting works.
        """
        enough = self._enough
        if enough is not None and page_count == enough[0] and ready_pages >= enough[1]:
            return  # the usual case of small commits: no more is asked for than by the one before
        self._enough = None
        spare = spare_pages(page_count) if inserted else 0
        wanted = page_count + max(0, spare - ready_pages)
        if self.max_pages is not None:
            wanted = max(page_count, min(wanted, self.max_pages))
        if wanted > self.pages:
            step = 0 if closely else max(LEAST_GROWTH, min(self.pages // 8, GROWTH_LIMIT // self.page_size))
            pages = max(wanted, self.pages + step)
            if self.max_pages is not None:
                pages = max(wanted, min(pages, self.max_pages))
            try:
                self.storage.resize(pages * self.page_size)
            except OSError as error:
                self._poison.not_committed("extending the file", error)
            except BaseException as error:  # noqa: BLE001 - a kill from the keyboard poisons too
                self._poison.fail("extending the file", error)
            self.pages = pages
        if spare and wanted > self.backed:
            self._back(wanted, min(wanted + spare, self.pages))
        if inserted:  # who only deletes asks for less
            self._enough = page_count, ready_pages
        self.perhaps_long = self.worth_cutting(page_count)

    def _back(self, wanted: int, better: int) -> None:
        """Have real blocks behind the first `wanted` pages, or `better` that many at once, so that this is seldom."""
        size = self.page_size
        try:
            try:
                self.storage.reserve(self.backed * size, (better - self.backed) * size)
                self.backed = better
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                self.storage.reserve(self.backed * size, (wanted - self.backed) * size)
                self.backed = wanted
        except OSError as error:
            self._poison.not_committed("the pages", error)

    # ------------------------------------------------------------ mapping

    def cover(self, meta: Meta, before: Space | None) -> Space:
        """A mapping that covers the pages of `meta`, which another process may have written; `before` if that does."""
        storage = self.storage
        while True:
            pages = storage.size() // meta.page_size
            if before is not None:
                before.cut(pages)
                if meta.page_count <= before.pages:
                    return before
            try:
                mapping = storage.map(max(1, pages) * meta.page_size)
            except ValueError:
                if storage.size() // meta.page_size < pages:
                    continue  # another process has just cut the file
                raise
            # Else it was cut while we mapped it, and the mapping's end must not be touched.
            if storage.size() >= len(mapping):
                return Space(mapping, meta.page_size, verify=self._verify, before=before)

    def map(self, before: Space) -> Space:
        """A mapping of the whole file as it is now, for the one who writes."""
        try:
            mapping = self.storage.map(self.pages * self.page_size)
        except OSError as error:
            self._poison.not_committed("mapping the file", error)
        return Space(mapping, self.page_size, verify=self._verify, before=before)

    # ------------------------------------------------------------ cutting

    def worth_cutting(self, pages: int) -> bool:
        """True if the file is a good part longer than `pages` pages. O(1)."""
        return self.pages > pages + max(64, pages // 2)

    def cut(self, pages: int, spaces: Iterable[Space]) -> None:
        """End the file after `pages` pages; `spaces` are the mappings in use here. An error only costs room."""
        try:
            for space in spaces:
                space.cut(pages)
            self.storage.resize(pages * self.page_size)
        except OSError:
            return  # the next cut tries again
        self.pages = pages
        self.backed = min(self.backed, pages)
        self.forget()
