"""``cowdb page``: one page, to the byte.

It takes any page, also one that is free, damaged or unreachable, and believes nothing
of it: a slot that leads outside is shown as such.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb import meta as metas
from cowdb.checksum import crc32c
from cowdb.cli.info import describe_slot
from cowdb.cli.opening import add_path, add_timeout, looking, natural
from cowdb.cli.output import FINDINGS, FINE, USAGE, Column, CommandError, counted, time_text
from cowdb.cli.walks import KINDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cowdb.cli.output import Output
    from cowdb.inspection import Source

__all__ = ["DESCRIPTION", "EXAMPLES", "arguments", "run"]

DESCRIPTION: Final = """
The header of page N, whether its checksum holds, its slots with the cells that
they lead to, and with --hex all its bytes. Any page can be looked at, also one that
is free or damaged; what its bytes say is shown, not what should be there. cowdb
pages says who refers to it. Exit code 1 if the checksum does not hold.
"""

EXAMPLES: Final = (
    ("cowdb page app.cowdb 0", "the first meta page"),
    ("cowdb page app.cowdb 17 --hex", "a page with all its bytes"),
    ("cowdb page app.cowdb 17 --show hex", "its keys and values as hex"),
)

SLOTS: Final = (
    Column("slot", "slot", "number"),
    Column("offset", "cell at", "number"),
    Column("head", "head"),
    Column("key", "key", "data"),
    Column("payload", "payload"),
    Column("value", "value", "data"),
)

_LINE: Final = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `cowdb.cli`."""
    add_path(parser)
    parser.add_argument("page", metavar="N", type=natural, help="the number of the page")
    parser.add_argument("--hex", action="store_true", help="all bytes of the page as well")
    parser.add_argument("--page-size", metavar="BYTES", type=natural, choices=fmt.PAGE_SIZES, help="if no meta says it")
    add_timeout(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """See `cowdb.cli`."""
    if args.hex and out.show == "redacted":
        raise CommandError("--hex would show what --show redacted hides", USAGE)
    with looking(args.file, args.timeout, wiped=lambda _source: args.page_size) as look:
        size = look.state.page_size if look.state else args.page_size
        if size is None:
            raise CommandError(f"{look.problem}; give --page-size to look all the same")
        pages = -(-look.storage.size() // size)
        if not 0 <= args.page < pages:
            if look.state and args.page < look.state.meta.page_count:
                raise CommandError(
                    f"page {args.page} is missing: the file ends after page {pages - 1}, and has been cut"
                )
            raise CommandError(f"the file has pages 0 to {pages - 1}", USAGE)
        raw = look.storage.read(args.page * size, size)
        facts = describe(look.storage, args.page, raw, size)
        if args.page < fmt.META_PAGES:
            facts["meta"] = describe_slot(look.slots[args.page]) | _trees(raw, args.page)
    if out.show == "redacted":
        for slot in facts["slots"]:
            slot["head"] = None  # it is the beginning of the key
    if args.hex:
        facts["hex"] = raw.hex()
    if out.machine:
        out.document(facts)
    else:
        _show(facts, raw, out)
    return FINE if facts["checksum_holds"] is not False else FINDINGS


def describe(source: Source, number: int, raw: bytes, size: int) -> dict[str, Any]:
    """What the bytes of a page say. `checksum_holds` is None for what may be the middle of an overflow run."""
    if len(raw) < size:
        raise CommandError(f"the file ends in the middle of page {number}")
    names = [field.name.replace(" ", "_") for field in fmt.PAGE_HEADER.fields]
    header = dict(zip(names, fmt.PAGE_HEADER.struct.unpack_from(raw), strict=True))
    kind = KINDS.get(header["kind"])
    facts: dict[str, Any] = {"page": number, "kind": kind, "header": header, "checksum_holds": False, "slots": []}
    if header["page_number"] != number or kind is None:
        facts["kind"] = None
        facts["checksum_holds"] = None
        facts["remark"] = "it has no header of its own: never written, or in the middle of an overflow run"
        if not raw.strip(b"\0"):
            facts["remark"] = "it is all zeros: never written"
        return facts
    if header["kind"] == fmt.OVERFLOW_KIND:
        facts |= _overflow(source, number, header["checksum"], size)
        return facts
    facts["checksum_holds"] = crc32c(memoryview(raw)[fmt.CHECKSUM_SIZE :]) == header["checksum"]
    if header["kind"] in {fmt.BRANCH_KIND, fmt.LEAF_KIND}:
        facts["prefix"] = raw[fmt.HEADER_SIZE : fmt.HEADER_SIZE + header["prefix_length"]]
        facts["slots"] = list(_slots(raw, header))
    return facts


def _overflow(source: Source, number: int, checksum: int, size: int) -> dict[str, Any]:
    """How long a run is does not stand in it: the length at which the checksum holds is the one."""
    found = crc32c(memoryview(source.read(number * size, size))[fmt.CHECKSUM_SIZE :])
    pages = 1
    end = source.size() // size
    while found != checksum and number + pages < end and pages < 1 << 15:
        found = crc32c(source.read((number + pages) * size, size), found)
        pages += 1
    holds = found == checksum
    remark = f"a run of {counted(pages, 'page')}" if holds else "no length of the run makes its checksum hold"
    return {"checksum_holds": holds, "pages": pages if holds else None, "remark": remark}


def _slots(raw: bytes, header: dict[str, int]) -> Iterator[dict[str, Any]]:
    leaf = header["kind"] == fmt.LEAF_KIND
    prefix = raw[fmt.HEADER_SIZE : fmt.HEADER_SIZE + header["prefix_length"]]
    first = fmt.HEADER_SIZE + (header["prefix_length"] + 7) // 8 * 8
    cells = min(header["cells"], max(len(raw) - first, 0) // fmt.SLOT_SIZE)
    for index in range(cells):
        word = int.from_bytes(raw[first + index * fmt.SLOT_SIZE :][: fmt.SLOT_SIZE], "little")
        head, offset, length = word >> 32, word >> 16 & 0xFFFF, word & 0xFFFF
        facts: dict[str, Any] = {"slot": index, "offset": offset, "head": f"{head:08x}", "suffix_length": length}
        start = offset + (fmt.CELL_HEAD_SIZE if leaf else 0)
        end = start + length
        if end > len(raw):
            yield facts | {"key": None, "payload": "the slot leads outside of the page", "value": None}
            continue
        facts["key"] = prefix + raw[start:end] if leaf or index else None
        yield facts | (_leaf_cell(raw, offset, end) if leaf else _reference(raw, end))


def _leaf_cell(raw: bytes, offset: int, end: int) -> dict[str, Any]:
    (word,) = struct.unpack_from("<H", raw, offset)
    kind, length = word >> fmt.LENGTH_BITS, word & fmt.LENGTH_MASK
    if end + length > len(raw):
        return {"payload": f"the value, {counted(length, 'byte')}, reaches over the end of the page", "value": None}
    if kind == fmt.INLINE:
        return {"payload": counted(length, "byte"), "value": raw[end : end + length]}
    if kind == fmt.OVERFLOW and length == fmt.REFERENCE_SIZE:
        return _reference(raw, end)
    return {"payload": f"kind {kind}, {counted(length, 'byte')}: there is no such kind", "value": None}


def _reference(raw: bytes, at: int) -> dict[str, Any]:
    if at + fmt.REFERENCE_SIZE > len(raw):
        return {"payload": "the reference reaches over the end of the page", "value": None}
    ref = fmt.unpack_reference(raw[at : at + fmt.REFERENCE_SIZE])
    text = f"page {ref.number}, born in {ref.birth}, count {ref.count}, checksum {ref.checksum:08x}"
    return {"payload": text, "value": None, "reference": ref._asdict()}


def _trees(raw: bytes, slot: int) -> dict[str, Any]:
    try:
        meta = metas.decode(raw, slot)
    except metas.BadMeta:
        return {}
    trees = {"main": meta.main, "catalog": meta.catalog, "free": meta.free}
    return {
        "database_id": meta.database_id.hex(),
        "trees": {name: tree._asdict() | {"root": tree.root._asdict()} for name, tree in trees.items()},
        "carried": [list(run) for run in meta.carried],
    }


# ---------------------------------------------------------------- for people


def _show(facts: dict[str, Any], raw: bytes, out: Output) -> None:
    out.line(f"page {facts['page']}: {facts['kind'] or 'no kind that there is'}", "bold")
    rows: list[tuple[str, str]] = []
    if facts["kind"] is not None:
        header = facts["header"]
        holds = "holds" if facts["checksum_holds"] else "DOES NOT HOLD"
        rows = [("checksum", f"{header['checksum']:08x}, {holds}")]
        rows += [(name.replace("_", " "), str(value)) for name, value in header.items() if name != "checksum"]
    if facts.get("prefix"):
        rows.append(("prefix", out.data(facts["prefix"])))
    for name, value in facts.get("meta", {}).items():
        if name == "trees":
            rows += [(f"{tree} tree", _tree_text(what)) for tree, what in value.items()]
        elif name == "commit_time":
            rows.append(("commit time", time_text(value)))
        elif name not in {"slot", "offset", "readable", "carried_runs"}:
            rows.append((name.replace("_", " "), _brief(value)))
    out.facts(rows)
    if "remark" in facts:
        out.line(f"  {facts['remark']}")
    if facts["slots"]:
        out.line()
        columns = SLOTS if facts["kind"] == "leaf" else SLOTS[:-1]
        out.table(columns, facts["slots"])
    if "hex" in facts:
        _dump(raw, out)


def _tree_text(tree: dict[str, Any]) -> str:
    root = tree["root"]
    if not tree["depth"]:
        return "empty"
    return f"root {root['number']}, born in {root['birth']}, depth {tree['depth']}, {counted(root['count'], 'entry')}"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        runs = (f"{start}+{length} ({birth}-{freed})" for start, length, birth, freed in value)
        return ", ".join(runs) or "nothing"
    return str(value)


def _dump(raw: bytes, out: Output) -> None:
    """Lines of 16 bytes; rows of zeros are left out."""
    out.line()
    blank = bytes(_LINE)
    skipped = False
    for at in range(0, len(raw), _LINE):
        row = raw[at : at + _LINE]
        if row == blank:
            if not skipped:
                out.line("*", "dim")
            skipped = True
            continue
        skipped = False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        out.line(f"{at:04x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  {text}")
