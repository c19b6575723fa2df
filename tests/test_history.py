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


def lists(snapshot, key):
    return snapshot.get(key, b"").split()


def work(db, me, count, history):
    rng = random.Random(me)
    for number in range(count):
        keys = [b"%d" % rng.randrange(KEYS) for _ in range(2)]
        one = Transaction((me, number), time.monotonic(), 0.0)
        if rng.random() < 0.5:
            with db.read() as snapshot:
                one.reads = [(key, lists(snapshot, key)) for key in keys + keys]
        else:
            value = b"%d.%d" % (me, number)
            with db.write(durability="lazy" if rng.random() < 0.3 else "full") as transaction:
                one.reads = [(key, lists(transaction, key)) for key in keys]
                transaction[keys[0]] = b" ".join([*lists(transaction, keys[0]), value])
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


@pytest.mark.parametrize("run", [threads_run, processes_run])
def test_a_history_has_no_anomaly(run, tmp_path):
    run(str(tmp_path / "test.cowdb"), TRANSACTIONS)


T = Transaction
SEEDED = {
    "lost update": ([T("a", 0, 3, [], [("x", 1)]), T("b", 0, 3, [], [("x", 2)])], {"x": [2]}),
    "dirty read": ([T("a", 0, 3, [("x", [9])])], {"x": []}),
    "non-repeatable": ([T("a", 0, 3, [], [("x", 1)]), T("b", 0, 3, [("x", []), ("x", [1])])], {"x": [1]}),
    "cycle": ([T("a", 0, 1, [], [("x", 1)]), T("b", 2, 3, [("x", [])])], {"x": [1]}),  # stale in real time
    "a cycle": (  # write skew
        [T("a", 0, 3, [("y", [])], [("x", 1)]), T("b", 0, 3, [("x", [])], [("y", 2)])],
        {"x": [1], "y": [2]},
    ),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_anomaly_is_found(name):
    assert any(name in text for text in anomalies(*SEEDED[name]))


def test_a_sound_history_passes():
    history = [T("a", 0, 1, [], [("x", 1)]), T("b", 0, 3, [("x", [1])], [("x", 2)]), T("c", 2, 4, [("x", [1])])]
    assert anomalies(history, {"x": [1, 2]}) == []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--transactions", type=int, default=TRANSACTIONS)
    wanted = parser.parse_args().transactions // 30 * 30
    for run in (threads_run, processes_run):
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            run(str(Path(scratch) / "test.cowdb"), wanted)
            print(f"{run.__name__}: {wanted} transactions, no anomaly, {time.perf_counter() - start:.1f} s")
