"""A data set and a loader as machine learning has them: the data set goes to worker processes and is read there.

Like PyTorch's: a data set is any object with ``__getitem__`` and ``__len__``; with "fork" the workers inherit it, with
"spawn" and "forkserver" they get a pickle of it.
"""

from __future__ import annotations

import os


class Records:
    """A database as a data set: record `index` is the entry of that rank."""

    def __init__(self, db):
        self.db = db

    def __len__(self):
        return len(self.db)

    def __getitem__(self, index):
        with self.db.read() as snapshot:
            return snapshot.peekitem(index)


class Loader:
    """Reads a data set in worker processes; iterating gives (process id, index, record), in no order."""

    def __init__(self, dataset, context, workers=4):
        self.dataset = dataset
        self.context = context
        self.workers = workers

    def __iter__(self):
        results = self.context.Queue()
        shares = [list(range(first, len(self.dataset), self.workers)) for first in range(self.workers)]
        processes = [self.context.Process(target=read_share, args=(self.dataset, share, results)) for share in shares]
        for process in processes:
            process.start()
        for _ in range(sum(map(len, shares))):
            yield results.get(timeout=60)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0


def read_share(dataset, share, results):
    for index in share:
        results.put((os.getpid(), index, dataset[index]))


def read_one(db, key):
    """For a pool: the database comes along with each task."""
    return os.getpid(), db[key]


def add_one(db, key):
    """For a pool: count up in a transaction."""
    with db.write() as transaction:
        transaction[key] = b"%d" % (int(transaction[key]) + 1)


_database = None


def start_worker(db):
    """For a pool: the database comes once, with the start of the worker."""
    global _database  # noqa: PLW0603 - a pool gives its workers nothing else to keep things in
    _database = db


def read_here(key):
    return _database[key]
