"""A hot copy: one snapshot into a new file, while writers go on.

    whole      every page of the snapshot to the same place, free pages as holes
    compact    every entry into a new database, in key order: dense, leaves full,
               no free pages

The new file is made under a temporary name beside its target and linked to it
when it is whole and on disk, so that a half made copy is never taken for one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Final

from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb.catalog import find_tree, name_key, names_in
from cowdb.cursor import ITEMS
from cowdb.errors import CorruptionError
from cowdb.kernel import Reader, Turn, scan
from cowdb.pager import Pager
from cowdb.recovery import believe, young_runs
from cowdb.sharing import LocalSharing
from cowdb.storage import FileDisk, refuse_no_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowdb.readers import Snapshot
    from cowdb.storage import Storage

    Progress = Callable[[int, int], None] | None

__all__ = ["copy_compact", "copy_whole"]

_STEP: Final = 1024
_PIECE: Final = 1 << 20


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[Storage]:
    """A storage that appears at `path`, whole and durable, if the block succeeds."""
    disk = FileDisk()
    if os.path.lexists(path):
        raise FileExistsError(f"{path!r} exists already; a copy overwrites nothing")
    refuse_no_directory(path)
    temporary = f"{path}.{secrets.token_hex(6)}.tmp"
    storage = disk.create(temporary, 0o600)
    try:
        yield storage
        storage.flush()
        disk.link(temporary, path)
    finally:
        storage.close()
        with contextlib.suppress(FileNotFoundError):  # where links are missing, the temporary name was renamed
            disk.remove(temporary)
    disk.flush_directory(path)


def copy_whole(source: Storage, snapshot: Snapshot, path: str, progress: Progress) -> None:
    """Copy the pages of `snapshot` to the same places of a new file, each verified on the way. O(used pages)."""
    meta = snapshot.meta._replace(durable=snapshot.meta.transaction)
    size = meta.page_size
    everything = snapshot.meta._replace(durable=0)
    total = meta.page_count
    done = 0
    with _new_file(path) as target:
        target.resize(total * size)
        for number, pages in young_runs(source, everything):
            offset, end = number * size, (number + pages) * size
            while offset < end:
                piece = source.read(offset, min(_PIECE, end - offset))
                target.write(offset, [piece])
                offset += len(piece)
            done += pages
            if progress is not None and done % _STEP < pages:
                progress(done, total)
        for slot in (0, 1):
            target.write(slot * size, [meta_page.encode(meta, slot)])
        if progress is not None:
            progress(total, total)


def _alone(storage: Storage) -> LocalSharing:
    """The words of a file that nobody else has."""
    sharing = LocalSharing()
    sharing.publish(believe(storage).meta, b"")
    return sharing


def copy_compact(snapshot: Snapshot, path: str, progress: Progress, page_size: int | None = None) -> None:
    """Write the entries of `snapshot` into a new, dense file, with pages of `page_size` bytes if that is given.

    O(entries).  Raises `KeySizeError` if a key is too long for smaller pages.
    """
    meta = snapshot.meta
    size = meta.page_size if page_size is None else page_size
    catalog = Reader(snapshot.space, meta.catalog)
    names = names_in(catalog)
    trees: list[tuple[str | None, Reader]] = [(None, Reader(snapshot.space, meta.main))]
    for name in names:
        descriptor = find_tree(catalog, name, meta)
        if descriptor is None:
            raise CorruptionError(-1, f"the catalog names {name!r}, and a search for it finds nothing (I7)")
        trees.append((name, Reader(snapshot.space, descriptor)))
    total = sum(len(tree) for _, tree in trees)
    done = 0
    with _new_file(path) as target:
        empty = meta._replace(
            page_size=size,
            transaction=1,
            durable=1,
            page_count=fmt.META_PAGES,
            main=fmt.EMPTY_TREE,
            catalog=fmt.EMPTY_TREE,
            free=fmt.EMPTY_TREE,
            carry=b"",
        )
        for slot in (0, 1):
            target.write(slot * size, [meta_page.encode(empty, slot)])
        pager = Pager(target, _alone(target))
        turn = Turn()
        pager.lock(None, turn)
        draft = pager.begin(turn)
        try:
            for label, tree in trees:
                if label is None:
                    writer = draft.main
                else:
                    draft.catalog.put(name_key(label, draft.catalog.key_limit), fmt.EMPTY_TREE.pack())
                    writer = draft.named_writer(label, fmt.EMPTY_TREE)
                for key, value in scan(tree, ITEMS, None, None):
                    writer.put(key, value)
                    done += 1
                    if progress is not None and not done % _STEP:
                        progress(done, total)
            pager.commit(draft, lazy=False)
        finally:
            pager.finish(draft)
        pager.settle()
        target.resize(pager.meta.page_count * size)  # a copy keeps no pages to delete with
        if progress is not None:
            progress(total, total)
