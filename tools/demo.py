"""A tour of cowdb in four acts, each of which proves what it says; `make demo` runs it.

1. Load every named character of Unicode into two named trees, in one transaction.
2. Look things up: by prefix, by range, by rank, by count.
3. Keep an old snapshot open in a second thread while the data under it changes.
4. Kill a process with SIGKILL in the middle of its commits, and see what is left.

The exit code is 0 if everything was as it should be, else 1.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cowdb

T = TypeVar("T")
CHILD = Path(__file__).with_name("demo_child.py")
FANCY = sys.stdout.isatty()


class DemoError(Exception):
    """Something was not as cowdb promises."""


def expect(condition: object, what: str) -> None:
    """Stop the demo unless `condition` holds; `assert` would vanish under ``python -O``."""
    if not condition:
        raise DemoError(what)


# ---------------------------------------------------------------- how it looks


def style(text: str, code: str) -> str:
    """`text` in a terminal's colour, or as it is when piped."""
    return f"\x1b[{code}m{text}\x1b[0m" if FANCY else text


def title(number: int, text: str) -> None:
    """Head an act."""
    print()
    print(style(f"{number}. {text}", "1"))


def say(label: str, text: str = "", seconds: float | None = None) -> None:
    """Print one finding, with the time that it took."""
    took = "" if seconds is None else style(f"  ({duration(seconds)})", "2")
    print(f"   {label:<46} {text}{took}")


def good(text: str) -> None:
    """Print something that was proved."""
    print("   " + style("ok", "32") + "  " + text)


def duration(seconds: float) -> str:
    """Seconds in a unit that reads well."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"


class Progress:
    """A bar in a terminal; silent when piped, where a line that is drawn over and over makes no sense."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.shown = 0.0

    def update(self, done: int) -> None:
        """Show that `done` of the total are done, at most 20 times a second."""
        now = time.monotonic()
        if not FANCY or now - self.shown < 0.05:
            return
        self.shown = now
        filled = 40 * done // self.total
        bar = "#" * filled + "." * (40 - filled)
        print(f"\r   [{bar}] {done:>7,} of {self.total:,}", end="", flush=True)

    def clear(self) -> None:
        """Take the bar away."""
        if FANCY:
            print("\r" + " " * 72 + "\r", end="", flush=True)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result of `function` and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


# ---------------------------------------------------------------- 1. load


def characters() -> Iterator[tuple[bytes, bytes, bytes]]:
    """Code point (4 bytes, big-endian, so that it sorts), name and UTF-8 of every named character."""
    for point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(point), None)
        if name is not None:
            yield point.to_bytes(4, "big"), name.encode(), chr(point).encode()


def load(db: cowdb.Database) -> int:
    """Act 1; the number of characters."""
    title(1, f"Load: every named character of Unicode {unicodedata.unidata_version}, one transaction, two trees")
    everything = list(characters())
    progress = Progress(len(everything))
    start = time.perf_counter()
    with db.write() as txn:
        by_point = txn.tree("by code point", create=True)
        by_name = txn.tree("by name", create=True)
        for done, (point, name, character) in enumerate(everything):
            by_point[point] = name
            by_name[name] = character
            progress.update(done)
        put = time.perf_counter()
    committed = time.perf_counter()
    progress.clear()
    total = 2 * len(everything)
    say("records put", f"{total:,}", put - start)
    say("committed and on disk with one flush", f"{Path(db.path).stat().st_size / 1e6:.1f} MB", committed - put)
    with db.read() as snap:
        expect(snap.trees() is not None, "no trees")
        for tree in ("by code point", "by name"):
            expect(len(snap.tree(tree)) == len(everything), f"the tree {tree!r} lost records")
    good(f"both trees count {len(everything):,} entries (len is a look at the root, not a walk)")
    return len(everything)


# ---------------------------------------------------------------- 2. look up


def look_up(db: cowdb.Database) -> None:
    """Act 2."""
    title(2, "Look up")
    with db.read() as snap:
        names = snap.tree("by name")
        points = snap.tree("by code point")

        cow, seconds = timed(lambda: names[b"COW FACE"])
        say("names['COW FACE']", cow.decode(), seconds)
        expect(cow.decode() == "\N{COW FACE}", "the cow is not a cow")

        greek, seconds = timed(lambda: [value.decode() for value in names.values(prefix=b"GREEK SMALL LETTER ")])
        say("prefix 'GREEK SMALL LETTER '", f"{len(greek)} letters: {''.join(greek[:24])}...", seconds)
        wanted = sorted(name for name in all_names() if name.startswith("GREEK SMALL LETTER "))
        expect(greek == [unicodedata.lookup(name) for name in wanted], "the Greek letters are wrong")

        winter, seconds = timed(lambda: [key.decode() for key in names.keys(b"SNOW", b"SNOX")])
        say("range 'SNOW' to 'SNOX'", ", ".join(winter), seconds)
        expect(winter == sorted(name for name in all_names() if "SNOW" <= name < "SNOX"), "the range is wrong")

        emoji, seconds = timed(lambda: points.count(b"\x00\x01\xf6\x00", b"\x00\x01\xf6\x50"))
        say("count of U+1F600 to U+1F64F", f"{emoji} faces, without walking over them", seconds)
        expect(emoji == sum(unicodedata.name(chr(p), "") != "" for p in range(0x1F600, 0x1F650)), "wrong count")

        han, seconds = timed(lambda: names.count(prefix=b"CJK UNIFIED IDEOGRAPH-"))
        say("count of prefix 'CJK UNIFIED IDEOGRAPH-'", f"{han:,}", seconds)
        expect(han == sum(name.startswith("CJK UNIFIED IDEOGRAPH-") for name in all_names()), "wrong count")

        rank, seconds = timed(lambda: names.bisect_left(b"COW FACE"))
        say("rank of 'COW FACE' among all names", f"{rank:,}", seconds)
        expect(rank == sum(name < "COW FACE" for name in all_names()), "wrong rank")

        (name, character), seconds = timed(lambda: names.peekitem(len(names) // 2))
        say("the name in the middle", f"{name.decode()} {character.decode()}", seconds)
        expect(name.decode() == sorted(all_names())[len(names) // 2], "wrong middle")
    good("all the same as what Python's unicodedata says")


def all_names() -> list[str]:
    """Every name, straight from Python: what the database is compared with."""
    if not _NAMES:
        _NAMES.extend(name.decode() for _, name, _ in characters())
    return _NAMES


_NAMES: list[str] = []


# ---------------------------------------------------------------- 3. snapshots


def digest(snap: cowdb.Transaction) -> str:
    """A fingerprint of all that `snap` sees."""
    sha = hashlib.sha256()
    for tree in ("by code point", "by name"):
        for key, value in snap.tree(tree).items():
            sha.update(b"%d,%d," % (len(key), len(value)) + key + value)
    return sha.hexdigest()


def snapshots(db: cowdb.Database, total: int) -> None:
    """Act 3."""
    title(3, "Snapshots: a reader sees its moment for as long as it likes, and blocks nobody")
    opened, changed = threading.Event(), threading.Event()

    def old_reader() -> tuple[str, str, int]:
        with db.read() as snap:
            before = digest(snap)
            opened.set()
            reads = 0
            while not changed.is_set():
                expect(len(snap.tree("by name")) == total, "the old snapshot changed its length")
                reads += 1
            return before, digest(snap), reads

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(old_reader)
        try:
            while not opened.wait(0.05) and not reader.done():
                pass
            start = time.perf_counter()
            commits = change(db)
            seconds = time.perf_counter() - start
        finally:
            changed.set()
        before, after, reads = reader.result()
    say("commits meanwhile", f"{commits}: rewrote, deleted, renamed", seconds)
    say("reads of the old snapshot meanwhile", f"{reads:,}")
    expect(before == after, "the old snapshot changed")
    good(f"the old snapshot is the same to the byte: sha256 {after[:16]}...")
    with db.read() as snap:
        left = snap.tree("names").count(prefix=b"GREEK ")
        expect(left == 0, "a new reader does not see the deletion")
        expect(digest_differs(snap), "a new reader does not see the changes")
    good("a new reader sees all of the changes")


def change(db: cowdb.Database) -> int:
    """Change much of the data in several transactions; their number."""
    for block in range(8):
        with db.write(durability="lazy") as txn:
            points = txn.tree("by code point")
            keys = list(points.keys(bytes([0, 0, 0x20 * block, 0]), bytes([0, 0, 0x20 * block + 4, 0])))
            points.update(dict.fromkeys(keys, b"changed in block %d" % block))
    with db.write() as txn:
        txn.tree("by name").delete_range(b"GREEK ", b"GREEK!")
        txn.rename("by name", "names")
    return 9


def digest_differs(snap: cowdb.Transaction) -> bool:
    """Whether the new reader's tree of code points shows the change."""
    return snap.tree("by code point")[b"\x00\x00\x00\x41"] == b"changed in block 0" and "names" in list(snap.trees())


# ---------------------------------------------------------------- 4. kill -9


def kill(path: Path, rounds: int) -> None:
    """Act 4."""
    title(4, "kill -9: a process dies in the middle of its commits")
    acknowledged = 0
    for number in range(1, rounds + 1):
        with subprocess.Popen([sys.executable, str(CHILD), str(path)], stdout=subprocess.PIPE, text=True) as child:
            if child.stdout is None:
                raise DemoError("no pipe")
            first = child.stdout.readline()
            expect(first, "the child did not commit anything")
            threading.Timer(random.uniform(0.05, 0.5), child.send_signal, (signal.SIGKILL,)).start()
            # Every whole line is an acknowledged commit. A line cut short was not printed whole, so it does not count.
            lines = [first, *child.stdout]
        expect(child.returncode == -signal.SIGKILL, f"the child ended by itself with code {child.returncode}")
        acknowledged_now = [int(line) for line in lines if line.endswith("\n")]
        acknowledged = acknowledged_now[-1]
        wanted = list(range(acknowledged_now[0], acknowledged + 1))
        expect(acknowledged_now == wanted, "the acknowledgements have a gap")

        with cowdb.open(path, create=False) as db:
            (found, whole), seconds = timed(lambda: survivors(db))
            findings, checked = timed(db.check)
        say(
            f"round {number}: killed after {len(acknowledged_now):>5,} commits",
            f"acknowledged up to {acknowledged:,}, found {found:,}; check: {len(findings)} findings",
            seconds + checked,
        )
        expect(found in (acknowledged, acknowledged + 1), f"acknowledged {acknowledged} but found {found}")
        expect(whole, "a transaction is there in part")
        expect(not findings, f"the checker found: {findings}")
    good("every acknowledged commit survived, whole; at most the one in flight came with them; no damage")


def survivors(db: cowdb.Database) -> tuple[int, bool]:
    """The newest transaction that the child left, and whether all up to it are there, whole."""
    with db.read() as snap:
        if "stream" not in list(snap.trees()):
            return 0, True
        stream = snap.tree("stream")
        keys = list(stream.keys())
        last = snap.get(b"last")
    newest = int(last) if last else 0
    wanted = [b"%012d/%d" % (n, part) for n in range(1, newest + 1) for part in range(5)]
    return newest, keys == wanted


# ---------------------------------------------------------------- the whole


def main() -> int:
    """Run the acts; the exit code."""
    parser = argparse.ArgumentParser(description="A tour of cowdb, with proofs.")
    parser.add_argument("--rounds", type=int, default=5, help="how often a process is killed (default 5)")
    parser.add_argument("--dir", type=Path, help="where to make the temporary directory for the files")
    arguments = parser.parse_args()
    if arguments.dir:
        arguments.dir.mkdir(parents=True, exist_ok=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has no cows sees their numbers
    start = time.perf_counter()
    print(style(f"cowdb {cowdb.__version__}", "1") + f" on Python {sys.version.split()[0]}")
    try:
        with tempfile.TemporaryDirectory(prefix="cowdb-demo-", dir=arguments.dir) as scratch:
            with cowdb.open(Path(scratch, "unicode.cowdb")) as db:
                total = load(db)
                look_up(db)
                snapshots(db, total)
                findings, seconds = timed(db.check)
                expect(not findings, f"the checker found: {findings}")
                say("every page checked by db.check()", "no findings", seconds)
            kill(Path(scratch, "killed.cowdb"), arguments.rounds)
    except DemoError as error:
        print()
        print(style("WRONG: ", "31") + str(error))
        return 1
    print()
    print(style("All as promised", "32") + f", in {duration(time.perf_counter() - start)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
