"""Histories of threads and of processes on one file are serializable in real time; the checker finds what is not."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import threading
import time
from pathlib import Path

import pytest
from history import Transaction, anomalies

import cowdb

TRANSACTIONS = 1500
KEYS = 8
GENERATION = 100
"""A worker goes on to other keys after so many transactions of its own: lists stay short, so large runs take no longer."""


class Lists:
    """Reads lists; equal ones are one object, so that a history of 100,000 transactions fits into memory."""

    def __init__(self):
        self._found = {}

    def __call__(self, snapshot, key):
        raw = snapshot.get(key, b"")
        known = self._found.get((key, raw))
        if known is None:
            values = tuple(self._found.setdefault(value, value) for value in raw.split())
            known = self._found[key, raw] = values
        return known


def append(transaction, lists, keys, value):
    reads = [(key, lists(transaction, key)) for key in keys]
    transaction[keys[0]] = b" ".join([*reads[0][1], value])
    return reads


def work(db, me, count, history):
    rng = random.Random(me)
    lists = Lists()
    for number in range(count):
        # Keys of neighbouring generations, so that these are bound to each other.
        generations = [(number + rng.randrange(GENERATION)) // GENERATION for _ in range(2)]
        keys = [b"%d/%d" % (generation, rng.randrange(KEYS)) for generation in generations]
        one = Transaction((me, number), time.monotonic(), 0.0)
        if rng.random() < 0.5:
            with db.read() as snapshot:
                one.reads = [(key, lists(snapshot, key)) for key in keys + keys]
        else:
            value = b"%d.%d" % (me, number)
            how = rng.random()
            if how < 0.3:  # by one thread for several, as `db.put` does it
                one.reads = db._combiner.write(db, append, lists, keys, value)
            else:
                with db.write(durability="lazy" if how < 0.5 else "full") as transaction:
                    one.reads = append(transaction, lists, keys, value)
            one.appends = [(keys[0], value)]
        one.ended = time.monotonic()
        history.append(one)


def process(path, me, count, queue):
    with cowdb.open(path) as db:
        queue.put(several(db, range(me, me + 2), count))


def several(db, names, count):
    history = []
    threads = [threading.Thread(target=work, args=(db, me, count // len(names), history)) for me in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return history


def judged(path, history, count):
    with cowdb.open(path) as db:
        with db.read() as snapshot:
            final = {key: value.split() for key, value in snapshot.items()}
        assert db.check() == []
    assert len(history) == count
    assert anomalies(history, final) == []


def threads_run(path, count):
    with cowdb.open(path) as db:
        history = several(db, range(5), count)
    judged(path, history, count)


def processes_run(path, count):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=process, args=(path, me, count // 3, queue)) for me in (0, 10, 20)]
    for child in children:
        child.start()
    history = [one for _ in children for one in queue.get(timeout=600)]
    for child in children:
        child.join(60)
    judged(path, history, count)


@pytest.mark.untraced
@pytest.mark.parametrize("run", [threads_run, processes_run])
def test_a_history_has_no_anomaly(run, tmp_path):
    run(str(tmp_path / "test.cowdb"), TRANSACTIONS)


def test_a_seeded_anomaly_is_found_in_a_large_history(tmp_path):
    """A reader in the middle of a real history is made not to see a transaction that had ended before it began."""
    path = str(tmp_path / "test.cowdb")
    with cowdb.open(path) as db:
        history = several(db, range(5), TRANSACTIONS)
        with db.read() as snapshot:
            final = {key: value.split() for key, value in snapshot.items()}
    assert anomalies(history, final) == []
    ended = {value: one.ended for one in history for _, value in one.appends}
    readers = [one for one in history if not one.appends and one.reads[0][1] and ended[one.reads[0][1][-1]] < one.begun]
    one = readers[len(readers) // 2]
    one.reads = [(key, values[:-1] if key == one.reads[0][0] else values) for key, values in one.reads]
    found = anomalies(history, final)
    assert len(found) == 1
    assert "a cycle" in found[0]


T = Transaction
SEEDED = {
    "lost update": ([T("a", 0, 3, [], [("x", 1)]), T("b", 0, 3, [], [("x", 2)])], {"x": [2]}),
    "dirty read": ([T("a", 0, 3, [("x", [9])])], {"x": []}),
    "non-repeatable": ([T("a", 0, 3, [], [("x", 1)]), T("b", 0, 3, [("x", []), ("x", [1])])], {"x": [1]}),
    "cycle": ([T("a", 0, 1, [], [("x", 1)]), T("b", 2, 3, [("x", [])])], {"x": [1]}),  # stale in real time
    "a cycle: fractured read": (
        [T("a", 0, 3, [], [("x", 1), ("y", 2)]), T("b", 0, 3, [("x", [1]), ("y", [])])],
        {"x": [1], "y": [2]},
    ),
    "a cycle: long fork": (  # two readers see two independent appends in two orders
        [
            T("a", 0, 3, [], [("x", 1)]),
            T("b", 0, 3, [], [("y", 2)]),
            T("c", 0, 3, [("x", [1]), ("y", [])]),
            T("d", 0, 3, [("x", []), ("y", [2])]),
        ],
        {"x": [1], "y": [2]},
    ),
    "a cycle: lost order": (  # two lists that were appended to in two orders
        [T("a", 0, 3, [], [("x", 1), ("y", 1)]), T("b", 0, 3, [], [("x", 2), ("y", 2)])],
        {"x": [1, 2], "y": [2, 1]},
    ),
    "there twice": ([T("a", 0, 3, [], [("x", 1)])], {"x": [1, 1]}),
    "a dirty write": ([T("a", 0, 3, [], [("x", 1)])], {"x": [1, 7]}),
    "a cycle": (  # write skew
        [T("a", 0, 3, [("y", [])], [("x", 1)]), T("b", 0, 3, [("x", [])], [("y", 2)])],
        {"x": [1], "y": [2]},
    ),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_anomaly_is_found(name):
    assert any(name.split(":")[0] in text for text in anomalies(*SEEDED[name]))


def test_a_sound_history_passes():
    history = [T("a", 0, 1, [], [("x", 1)]), T("b", 0, 3, [("x", [1])], [("x", 2)]), T("c", 2, 4, [("x", [1])])]
    assert anomalies(history, {"x": [1, 2]}) == []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--transactions", type=int, default=TRANSACTIONS)
    wanted = -(-parser.parse_args().transactions // 30) * 30
    for run in (threads_run, processes_run):
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            run(str(Path(scratch) / "test.cowdb"), wanted)
            print(f"{run.__name__}: {wanted} transactions, no anomaly, {time.perf_counter() - start:.1f} s")
