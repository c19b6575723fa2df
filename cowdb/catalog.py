"""The catalog: names to trees.

It is a tree like the others, whose keys are names in UTF-8 and whose values are
tree descriptors of 64 bytes.

    meta --> catalog tree:  "genres" -> descriptor --> root of genres
                            "users"  -> descriptor --> root of users
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowdb import format as fmt
from cowdb.cursor import KEYS, VALUES
from cowdb.errors import CorruptionError, KeySizeError
from cowdb.kernel import scan
from cowdb.meta import BadMeta, check_descriptor

if TYPE_CHECKING:
    from cowdb.meta import Meta
    from cowdb.tree import Reader

__all__ = ["descriptors", "find_tree", "name_key", "names_in", "tree_names"]


def name_key(name: object, limit: int) -> bytes:
    """The key of the tree called `name`, which is a non-empty string of at most `limit` bytes in UTF-8."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a tree is a str, not {type(name).__name__}")
    if not name:
        raise ValueError("the name of a tree is not empty; the main tree is the transaction itself")
    try:
        key = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is no name for a tree: it has surrogates, which UTF-8 has not") from None
    if len(key) > limit:
        raise KeySizeError(len(key), limit)
    return key


def find_tree(catalog: Reader, name: str, meta: Meta) -> fmt.Descriptor | None:
    """The descriptor of the tree called `name`, checked (I4, I10); None if there is none. O(log trees)."""
    found = catalog.find(name_key(name, fmt.max_key_size(meta.page_size)))
    if found is None:
        return None
    raw = catalog.value(*found)
    if len(raw) != fmt.DESCRIPTOR_SIZE:
        raise CorruptionError(-1, f"the catalog entry of {name!r} is no tree descriptor")
    descriptor = fmt.unpack_descriptor(raw)
    try:
        check_descriptor(descriptor, repr(name), meta.transaction, meta.page_count)
    except BadMeta as error:
        raise CorruptionError(descriptor.root.number, str(error)) from None
    return descriptor


def tree_names(keys: list[bytes]) -> list[str]:
    """Names of the catalog's keys, in their order."""
    if b"" in keys:
        raise CorruptionError(-1, "a tree has no name")
    try:
        return [key.decode() for key in keys]
    except UnicodeDecodeError as error:
        raise CorruptionError(-1, f"a tree's name is not UTF-8: {error.object!r}") from None


def names_in(catalog: Reader) -> list[str]:
    """The names of all named trees, in the order of their UTF-8. O(trees)."""
    return tree_names(list(scan(catalog, KEYS, None, None)))


def descriptors(catalog: Reader) -> list[fmt.Descriptor]:
    """Those of all named trees, in the order of the names; not checked. O(trees)."""
    found = []
    for raw in scan(catalog, VALUES, None, None):
        if len(raw) != fmt.DESCRIPTOR_SIZE:
            raise CorruptionError(-1, "a catalog entry is no tree descriptor")
        found.append(fmt.unpack_descriptor(raw))
    return found
