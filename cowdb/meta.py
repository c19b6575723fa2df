"""The meta page: where a transaction becomes the state of the database.

Two pages, 0 and 1, take turns.  A meta page names one committed state whole:
the roots of the three trees, the young end of the free list, and `durable`,
the newest transaction that was known to be on disk when it was written.

    slot 0: transaction 41, durable 40      slot 1: transaction 42, durable 41
                                                       |
                                   main, catalog and free tree, carry list

On opening, the newest meta wins whose own checksum holds and below which every
page born after its `durable` verifies (rule of `durable`; `recovery` does the
walk).  This module only turns bytes into a `Meta` and back; it checks each
field before anybody may compute with it (I10).
"""

from __future__ import annotations

from typing import NamedTuple

from cowdb import format as fmt
from cowdb.checksum import crc32c

__all__ = ["BadMeta", "CarriedRun", "Meta", "UnknownFormat", "decode", "encode"]

CarriedRun = tuple[int, int, int, int]
"""A run of free pages: start, length, birth, freed (transaction ids)."""


class BadMeta(ValueError):  # noqa: N818 - it is a verdict on bytes, which never leaves the package
    """These bytes are not an intact meta page; the message says why."""


class UnknownFormat(BadMeta):
    """An intact meta page of a format or feature that this code does not know."""


class Meta(NamedTuple):
    """One committed state of the database.

    `transaction` counts commits, `durable` is the newest transaction known to
    be on disk when this meta was written, `page_count` the pages of the file
    that this state may use, `commit_time` nanoseconds since 1970 (advisory),
    `carry` the carry list as it lies in the page.
    """

    page_size: int
    database_id: bytes
    transaction: int
    durable: int
    page_count: int
    commit_time: int
    main: fmt.Descriptor
    catalog: fmt.Descriptor
    free: fmt.Descriptor
    carry: bytes
    optional_features: int = 0

    @property
    def carried(self) -> list[CarriedRun]:
        """The runs of the carry list. O(runs)."""
        return fmt.unpack_runs(self.carry)

    def with_durable(self, durable: int) -> Meta:
        """The same state, with another `durable`."""
        return Meta(
            self.page_size, self.database_id, self.transaction, durable, self.page_count, self.commit_time,
            self.main, self.catalog, self.free, self.carry, self.optional_features,
        )  # fmt: skip


def encode(meta: Meta, slot: int) -> bytes:
    """The page of `meta` for slot 0 or 1, checksum included. O(page size)."""
    page = bytearray(meta.page_size)
    carry = meta.carry
    if len(carry) > len(page) - fmt.META.size:
        raise ValueError(f"{len(carry) // fmt.CARRIED_RUN.size} runs do not fit into a meta page of {len(page)} bytes")
    fmt.META.struct.pack_into(
        page,
        0,
        fmt.PAGE_HEADER.struct.pack(0, fmt.META_KIND, 0, 0, slot, meta.transaction, 0, 0, 0, 0),
        fmt.MAGIC,
        fmt.FORMAT_VERSION,
        0,
        meta.page_size,
        0,
        meta.optional_features,
        meta.database_id,
        meta.transaction,
        meta.durable,
        meta.page_count,
        meta.commit_time,
        meta.main.pack(),
        meta.catalog.pack(),
        meta.free.pack(),
        len(carry) // fmt.CARRIED_RUN.size,
        b"",
    )
    page[fmt.META.size : fmt.META.size + len(carry)] = carry
    checksum = crc32c(memoryview(page)[fmt.CHECKSUM_SIZE :])
    page[: fmt.CHECKSUM_SIZE] = checksum.to_bytes(fmt.CHECKSUM_SIZE, "little")
    return bytes(page)


def decode(page: bytes, slot: int) -> Meta:
    """The meta that `page` holds; it was read from slot `slot`.

    Raises `BadMeta` if it is torn, misplaced or senseless, `UnknownFormat` if
    it is intact but of a version or feature that this code does not know.
    O(page size).
    """
    if len(page) < fmt.PAGE_SIZES[0]:
        raise BadMeta("the file is too short for a meta page")
    (
        header, magic, version, _, page_size, required, optional, database_id, transaction, durable,
        page_count, commit_time, main, catalog, free, carried_count, _,
    ) = fmt.META.struct.unpack_from(page)  # fmt: skip
    if magic != fmt.MAGIC:
        raise BadMeta("it has no cowdb magic")
    if page_size not in fmt.PAGE_SIZES:
        raise BadMeta(f"it names a page size of {page_size}")
    if len(page) < page_size:
        raise BadMeta("the file is too short for a meta page")
    page = page[:page_size]
    checksum, kind, _, _, number, birth, *_ = fmt.PAGE_HEADER.struct.unpack(header)
    if checksum != crc32c(memoryview(page)[fmt.CHECKSUM_SIZE :]):
        raise BadMeta("its checksum does not hold")
    if version != fmt.FORMAT_VERSION:
        raise UnknownFormat(f"the file has format version {version}, this cowdb knows {fmt.FORMAT_VERSION}")
    if required & ~fmt.KNOWN_REQUIRED_FEATURES:
        raise UnknownFormat(f"the file uses unknown features {required:#x}")
    if kind != fmt.META_KIND or number != slot or birth != transaction:
        raise BadMeta(f"it was written for page {number}")
    if not durable <= transaction <= fmt.MAX_U48:
        raise BadMeta(f"durable transaction {durable} is after transaction {transaction}")
    if not fmt.FIRST_DATA_PAGE <= page_count <= fmt.MAX_U48:
        raise BadMeta(f"it counts {page_count} pages")
    if carried_count > fmt.carry_capacity(page_size):
        raise BadMeta(f"it carries {carried_count} runs, more than fit")
    return Meta(
        page_size=page_size,
        database_id=database_id,
        transaction=transaction,
        durable=durable,
        page_count=page_count,
        commit_time=commit_time,
        main=_decode_tree(main, "main", transaction, page_count),
        catalog=_decode_tree(catalog, "catalog", transaction, page_count),
        free=_decode_tree(free, "free", transaction, page_count),
        carry=_decode_carry(page, carried_count, transaction, page_count),
        optional_features=optional,
    )


def check_descriptor(tree: fmt.Descriptor, name: str, transaction: int, page_count: int) -> None:
    """Raise `BadMeta` unless the fields of `tree` agree with each other and the meta (I4, I10)."""
    root = tree.root
    if (root.number == 0) != (tree.depth == 0) or tree.depth > fmt.MAX_DEPTH:
        raise BadMeta(f"the {name} tree has root {root.number} and depth {tree.depth}")
    if root.number and not fmt.FIRST_DATA_PAGE <= root.number < page_count:
        raise BadMeta(f"the {name} tree has its root at page {root.number} of {page_count}")
    if root.birth > transaction:
        raise BadMeta(f"the {name} tree was born in {root.birth}, after transaction {transaction}")
    if tree.branch_pages + tree.leaf_pages + tree.overflow_pages > page_count:
        raise BadMeta(f"the {name} tree counts more pages than the file")


def _decode_tree(raw: bytes, name: str, transaction: int, page_count: int) -> fmt.Descriptor:
    tree = fmt.unpack_descriptor(raw)
    check_descriptor(tree, name, transaction, page_count)
    return tree


def _decode_carry(page: bytes, count: int, transaction: int, page_count: int) -> bytes:
    carry = page[fmt.META.size : fmt.META.size + count * fmt.CARRIED_RUN.size]
    for start, length, birth, freed in fmt.unpack_runs(carry):
        if not (fmt.FIRST_DATA_PAGE <= start < page_count and 1 <= length <= page_count - start):
            raise BadMeta(f"it carries a run of {length} pages at {start}, of {page_count}")
        if not birth <= freed <= transaction:
            raise BadMeta(f"it carries a run born in {birth} and freed in {freed}")
    return carry
