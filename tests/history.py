"""A checker of histories: transactions that append unique values to lists and read whole lists.

Because each value is unique and a list shows the order of its appends, what a transaction read says which
transactions it depends on (the idea of Adya's graphs, as Elle uses it):

    ww   a appended right before b          wr   b read what a appended last
    rw   a read a list without b's append   rt   a had ended before b began

A cycle is an anomaly; so is a read that is no prefix of the final list, or that changes within a transaction.

The time is that of comparing each read with the final list, and of one walk over the graph; so lists are best short
and many: 100,000 transactions take some seconds.
"""

from __future__ import annotations

import dataclasses
import graphlib
import itertools


@dataclasses.dataclass
class Transaction:
    """What one transaction did: `reads` (list, values) in order, `appends` (list, value), and when."""

    name: object
    begun: float
    ended: float
    reads: list = dataclasses.field(default_factory=list)
    appends: list = dataclasses.field(default_factory=list)


def anomalies(history, final):
    """What is wrong, as texts. `final` gives the lists as they are at the end."""
    found = []
    there = {(key, value) for key, values in final.items() for value in values}
    owner = {}
    for transaction in history:
        for key, value in transaction.appends:
            owner[key, value] = transaction.name
    graph = {transaction.name: set() for transaction in history}  # after -> before

    def edge(before, after):
        if before is not None and after is not None and before != after:
            graph[after].add(before)

    for key, values in final.items():
        if len(set(values)) < len(values):
            found.append(f"a value of {key!r} is there twice")
        for value in values:
            if (key, value) not in owner:
                found.append(f"{value!r} in {key!r} is nobody's: a dirty write")
        for before, after in itertools.pairwise(values):
            edge(owner.get((key, before)), owner.get((key, after)))
    for key, value in owner:
        if (key, value) not in there:
            found.append(f"{value!r} of {owner[key, value]!r} is gone from {key!r}: a lost update")
    for transaction in history:
        first = {}
        for key, values in transaction.reads:
            if first.setdefault(key, values) != values:
                found.append(f"{transaction.name!r} read {key!r} twice and differently: a non-repeatable read")
            whole = final.get(key, ())
            if tuple(values) != tuple(whole[: len(values)]):
                found.append(f"{transaction.name!r} read {key!r} as no prefix: a dirty read")
                continue
            if values:
                edge(owner.get((key, values[-1])), transaction.name)
            if len(values) < len(whole):
                edge(transaction.name, owner.get((key, whole[len(values)])))
    # Real time: who ended before another began goes before him. A chain of moments keeps the edges few.
    moments = sorted(
        [(transaction.begun, 1, transaction.name) for transaction in history]
        + [(transaction.ended, 0, transaction.name) for transaction in history]
    )
    last = None
    for number, (_, begins, name) in enumerate(moments):
        if begins:
            if last is not None:
                graph[name].add(last)
        else:
            moment = ("moment", number)
            graph[moment] = {name} if last is None else {name, last}
            last = moment
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"a cycle: {error.args[1]}")
    return found
