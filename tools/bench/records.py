"""The records that all stores are given: the same for each of them, made again wherever they are needed.

A key is 16 random bytes and a value 100, so nothing can be compressed and no order helps.  They are made in chunks
from seeds, so that ten million of them need not be held in memory, and any process can make any of them:

    chunk 0: 100,000 records    chunk 1: 100,000 records    ...    the last one: what is left
"""

from __future__ import annotations

import random
from collections.abc import Iterator

CHUNK = 100_000
KEY = 16
VALUE = 100

Pair = tuple[bytes, bytes]
Operation = tuple[bytes, bytes | None]
"""A put of the value, or a get where there is none."""


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """Number and length of each chunk of `count` records."""
    for number, start in enumerate(range(0, count, CHUNK)):
        yield number, min(CHUNK, count - start)


def pairs(number: int, length: int, value: int = VALUE) -> list[Pair]:
    """The first `length` records of a chunk, keys in random order, values of `value` bytes."""
    keys = _keys(number, length)
    values = random.Random(f"values {number}").randbytes(length * value)
    return [(keys[KEY * i : KEY * (i + 1)], values[value * i : value * (i + 1)]) for i in range(length)]


def sorted_pairs(number: int, length: int, count: int) -> list[Pair]:
    """The same with keys that rise, from one chunk to the next too, evenly over all that `count` keys can be."""
    step = 2**64 // count
    rest = random.Random(f"rest {number}").randbytes(length * 8)
    values = random.Random(f"values {number}").randbytes(length * VALUE)
    return [
        (
            ((number * CHUNK + i) * step).to_bytes(8, "big") + rest[8 * i : 8 * (i + 1)],
            values[VALUE * i : VALUE * (i + 1)],
        )
        for i in range(length)
    ]


def sample(count: int, size: int, seed: object) -> list[bytes]:
    """`size` keys, or `count` if that is less, out of `count` records, each once, in random order."""
    rng = random.Random(f"sample {seed}")
    wanted: dict[int, list[int]] = {}
    for place in rng.sample(range(count), min(count, size)):
        wanted.setdefault(place // CHUNK, []).append(place % CHUNK)
    found = []
    for number, length in chunks(count):
        if number in wanted:
            block = _keys(number, length)
            found += [block[KEY * i : KEY * (i + 1)] for i in wanted[number]]
    rng.shuffle(found)
    return found


def missing(size: int, seed: object) -> list[bytes]:
    """`size` keys that no record has."""
    block = random.Random(f"missing {seed}").randbytes(size * KEY)
    return [block[KEY * i : KEY * (i + 1)] for i in range(size)]


def replacements(keys: list[bytes], seed: object) -> list[Pair]:
    """Another value for each of `keys`."""
    rng = random.Random(f"replacements {seed}")
    return [(key, rng.randbytes(VALUE)) for key in keys]


def mixture(keys: list[bytes], writes: float, seed: object) -> list[Operation]:
    """An operation a key: a put with probability `writes`, else a get."""
    rng = random.Random(f"mixture {seed}")
    return [(key, rng.randbytes(VALUE) if rng.random() < writes else None) for key in keys]


def _keys(number: int, length: int) -> bytes:
    return random.Random(f"keys {number}").randbytes(length * KEY)
