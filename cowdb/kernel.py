"""Which form of the page kernel is used: the plain one, or its compiled twin.

    page  space  path  tree  writer  cursor.scan  freelist  meta.encode  readers.Gate  reading  handle  writing
    draft  group  locks  sharing  sealed.write_sealed, write_page  storage.begin_writing, leads_to, size_of
                     |                                                       plain, always here
                     |
                  kernel  -------->  one form of all of them, for everything above
                     |
    _kernel  (built from native/, where a C compiler was found)

Both forms have the same names and do the same: the same operations give files
equal to the byte.  They are never mixed, since a compiled writer's pages are compiled
pages.  The choice is made once, at import: the compiled form if it is there and
was built from the sources that lie here now, else the plain one.  With
COWDB_PURE=1 in the environment it is the plain one in any case; with
COWDB_PURE=0 the import fails if the compiled one is not there.
"""

from __future__ import annotations

import importlib
import os
import zlib
from pathlib import Path as _File
from typing import TYPE_CHECKING, Final

from cowdb.cursor import scan
from cowdb.draft import Draft, Member
from cowdb.freelist import FreeList
from cowdb.group import Group
from cowdb.handle import Handle
from cowdb.locks import Turn, WriterLock
from cowdb.meta import encode
from cowdb.page import Page
from cowdb.path import Path
from cowdb.readers import Gate
from cowdb.reading import Reading
from cowdb.sealed import write_page, write_sealed
from cowdb.sharing import FileSharing
from cowdb.space import Space
from cowdb.storage import PLAIN_BUFFERS, begin_writing, leads_to, size_of
from cowdb.tree import Reader
from cowdb.writer import Changes, Writer
from cowdb.writing import Writing

if TYPE_CHECKING:
    from types import ModuleType

    from cowdb import format as fmt
    from cowdb.sealed import Sealed

    Usual = tuple[fmt.Descriptor, int]

__all__ = [
    "FORM",
    "REASON",
    "Changes",
    "Draft",
    "FileSharing",
    "FreeList",
    "Gate",
    "Group",
    "Handle",
    "Member",
    "Page",
    "Path",
    "Reader",
    "Reading",
    "Space",
    "Turn",
    "Writer",
    "WriterLock",
    "Writing",
    "begin_writing",
    "encode",
    "leads_to",
    "scan",
    "seal_usual",
    "size_of",
    "write_page",
    "write_sealed",
]

_ROOT: Final = _File(__file__).parent.parent


def stamp(root: _File) -> int | None:
    """What tells one state of the kernel's sources from another; None if they are not here. As in setup.py."""
    if not (root / "native" / "_kernel.pxd").is_file():
        return None
    found = 0
    for folder, pattern in (("native", "*.*"), ("cowdb", "format.py")):
        for path in sorted((root / folder).glob(pattern)):
            if path.suffix in {".py", ".h", ".pxd"}:
                found = zlib.crc32(path.read_bytes(), found)
    return found


def _find(wish: str) -> tuple[ModuleType | None, str]:
    """The compiled form if it may be used, and why it is not."""
    if wish == "1":
        return None, "COWDB_PURE=1 asks for the plain form"
    try:
        native = importlib.import_module("cowdb._kernel")
    except ImportError as error:
        sources = "" if stamp(_ROOT) is None else "; this is a source tree, what was installed is used elsewhere"
        return None, f"the compiled form was not built ({error}){sources}"
    here = stamp(_ROOT)
    if here is not None and here != native.STAMP:
        return None, "the compiled form was built from other sources than those that are here; build it again"
    return native, ""


_wish: Final = os.environ.get("COWDB_PURE", "")
_native, REASON = _find(_wish)
"""`REASON` says why the form is plain; empty if it is compiled."""

FORM: Final = "plain" if _native is None else "compiled"
"""Which form this process uses."""

if _native is None and _wish == "0":
    raise ImportError(f"COWDB_PURE=0 asks for the compiled form of cowdb's kernel, but {REASON}")


def seal_usual(draft: Draft, free: FreeList, live: list[int], room: int, sealed: Sealed) -> Usual | None:  # noqa: ARG001 - the twin's
    """A short cut for most commits, which only the compiled form has; None: do it step by step. See `Pager.commit`."""
    return None


if not TYPE_CHECKING and _native is not None:
    # For the type checker the plain form speaks for both.
    PLAIN_BUFFERS.add(_native.Frame)
    Changes = _native.Changes
    Draft = _native.Draft
    FreeList = _native.FreeList
    Gate = _native.Gate
    Member = _native.Member
    if not _native.FREE_THREADED:  # that of an interpreter without a lock is the plain one: see native/handle.py
        Handle = _native.Handle
        FileSharing = _native.FileSharing
        Group = _native.Group
        Turn = _native.Turn
        WriterLock = _native.WriterLock
    Page = _native.Page
    Path = _native.Path
    Reader = _native.Reader
    Reading = _native.Reading
    Space = _native.Space
    Writer = _native.Writer
    Writing = _native.Writing
    begin_writing = _native.begin_writing
    encode = _native.encode
    leads_to = _native.leads_to
    seal_usual = _native.seal_usual
    size_of = _native.size_of
    scan = _native.scan
    write_page = _native.write_page
    write_sealed = _native.write_sealed
