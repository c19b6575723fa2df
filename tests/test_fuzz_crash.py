"""The power cuts of `fuzz`: its model equals that of `cowdb.testing`, sharing runs changes no verdict, bugs are seen.

What looks into mappings needs the plain kernel, so it runs in processes that have it.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from cowdb.testing import CrashDisk, MemoryDisk
from fuzz import crash, prove
from fuzz.crash import Case, attempt, problem_of, sequences, shrunk
from fuzz.crash_disk import PAGE, PLAIN, SIZE, LazyFile, LazyStorage, Situation, installed
from fuzz.crash_model import Doubt
from fuzz.crash_run import ALPHABET, PATH, TUNINGS, content, empty, opened, run_words, survive, vanish
from fuzz.crash_search import STRATEGIES, Mode, Search, _Run, id_of
from fuzz.harness import Options, Quiet, Result, spread
from fuzz.prove_bugs import BUGS


class Child:
    """A test's body, run in a process with the plain kernel."""

    def __init__(self, name):
        self.name = name

    def __call__(self, share):
        with installed():
            globals()[self.name]()
        yield Result(cases=1)


def in_child(body):
    result = spread(Child(body.__name__), Options(120.0, 1, 1), Quiet(), environment=PLAIN)
    assert not result.failures, result.failures[0].story
    assert result.cases == 1


# ---------------------------------------------------------------- the model


def states_of(situation):
    """Every state as bytes."""
    found = set()
    for size in situation.sizes:
        inside = [situation.pages.get(number, (bytes(PAGE),)) for number in range(size)]
        found.update(b"".join(pages) for pages in itertools.product(*inside))
    return found


def random_trace(rng, steps):
    """A recording of writes, cuts, growth, flushes and failed flushes, by both disks."""
    disk = CrashDisk(MemoryDisk({"/f": b"0" * (2 * PAGE)}))
    storage = disk.open("/f", read_only=False)
    file = LazyFile(Situation((2,), {0: (b"0" * PAGE,), 1: (b"0" * PAGE,)}))
    lazy = LazyStorage(file)
    for step in range(steps):
        match rng.choice("wwwwsfx"):
            case "w":
                at, pages = rng.randrange(5), rng.randrange(1, 3)
                data = b"".join(rng.choice((b"%d" % step, b"a", b"b"))[:1] * (PAGE // 2) * 2 for _ in range(pages))
                storage.write(at * PAGE, [data])
                lazy.write(at * PAGE, [data])
            case "s":
                size = rng.randrange(1, 6) * PAGE
                storage.resize(size)
                lazy.resize(size)
            case "f":
                storage.flush()
                lazy.flush()
            case "x":
                storage.lose_flush()
                file.failing = True
                with pytest.raises(OSError):
                    lazy.flush()
    return disk, file


@pytest.mark.parametrize("seed", range(40))
def test_the_model_gives_the_states_of_the_general_one(seed):
    disk, file = random_trace(random.Random(seed), 9)
    doubt = Doubt(Situation((2,), {0: (b"0" * PAGE,), 1: (b"0" * PAGE,)}))
    kinds = {"write": "Write", "size": "Resize", "begin": "FlushBegin", "end": "FlushEnd", "failed": "FlushFailed"}
    assert [kinds[step[0]] for step in file.trace] == [type(operation).__name__ for operation in disk.trace]
    for index in range(len(disk.trace) + 1):
        if index:
            doubt.apply(file.trace[index - 1])
        if disk.at(index, sector=PAGE).count() > 3000:
            continue
        theirs = {image.content("/f") for image in disk.every_image(index, sector=PAGE)}
        ours = states_of(doubt.situation())
        assert ours == theirs, f"after {index} steps"
        assert doubt.count(10**6) >= len(ours)
    assert file.size == len(disk.content("/f"))
    assert file.read(0, file.size) == disk.content("/f")


def test_a_page_of_small_sectors_may_be_any_mixture():
    def page(first, last):
        return first * 512 + bytes(PAGE - 1024) + last * 512

    start = Situation((1,), {0: (page(b"a", b"b"),)})
    doubt = Doubt(start, sector=512)
    doubt.apply(("write", 0, page(b"c", b"d")))
    expected = {page(first, last) for first in (b"a", b"c") for last in (b"b", b"d")}
    assert set(doubt.situation().pages[0]) == expected
    assert doubt.situation().pages[0][-1] == page(b"c", b"d")
    hostile = Doubt(start, sector=512, hostile=True)
    hostile.apply(("write", 0, page(b"c", b"d")))
    more = hostile.situation().pages[0]
    assert set(more) > expected | {bytes(PAGE)}
    assert more[-1] == page(b"c", b"d")


def test_a_second_crash_begins_where_the_first_has_left_things_open():
    a, b, c = (letter * PAGE for letter in (b"a", b"b", b"c"))
    start = Situation((2,), {0: (a, b), 1: (a, b)})
    doubt = Doubt(start)
    doubt.settle([(SIZE, 2), (0, hash(b))])
    doubt.apply(("write", PAGE, c))
    assert doubt.situation().pages == {0: (b,), 1: (a, b, c)}
    doubt.apply(("begin", 1, b""))
    doubt.apply(("end", 1, b""))
    assert doubt.situation().pages == {0: (b,), 1: (c,)}


# ---------------------------------------------------------------- sharing runs


def test_what_is_shared_is_what_each_state_gives_by_itself():
    in_child(each_state_by_itself)


def each_state_by_itself():
    compared = 0
    for words in (("put",), ("lazy", "large"), ("tree", "kill"), ("fail",)):
        at = []
        done = run_words(words, at=at)
        doubt = Doubt(empty())
        search = Search()
        for index, step in enumerate(done.file.trace, 1):
            doubt.apply(step)
            if index <= at[0] or doubt.count(100) >= 100:
                continue
            assert search.explore(doubt.situation(), done.history.allowed(index), Mode()) is None
            situation = doubt.situation()
            for state in sorted(states_of(situation)):
                # By a plain disk, on which all is read as it comes.
                disk = MemoryDisk({PATH: state})
                db = opened(disk)
                expected = content(db)
                assert db.check() == []
                vanish(db)
                pages = {number: (state[number * PAGE : (number + 1) * PAGE],) for number in range(len(state) // PAGE)}
                one = Situation((len(state) // PAGE,), pages)
                runs = search.counts.runs
                assert search.explore(one, [expected], Mode()) is None
                assert search.counts.runs == runs, "a state was not covered"
                compared += 1
    assert compared > 100


def test_what_a_run_wrote_is_kept_no_longer_than_somebody_may_go_deeper():
    """The story: a worker of fourteen minutes had grown to 12 GB, and the system killed it. Each run kept the pages that it
    had written, for a second crash, also those that were the second crash; and each kept what it had found."""
    in_child(nothing_is_kept)


def nothing_is_kept():
    search = Search()
    assert attempt(Case(("put", "large"), "plain", Mode(deep=2), 0), search) is None
    runs = []
    nodes = [search._root]
    while nodes:
        for after in nodes.pop().after.values():
            (runs if isinstance(after, _Run) else nodes).append(after)
    assert len(runs) > 10
    assert {run.deeper for run in runs} == {True, False}
    assert [run for run in runs if run.written is not None] == []
    found = [run.verdict.found for run in runs if run.verdict.found is not None]
    assert len({id(model) for model in found}) == len({id_of(model) for model in found}) < len(found)


def test_the_oracle_refuses_what_is_not_allowed():
    in_child(refusals)


def refusals():
    done = run_words(("put",))
    doubt = Doubt(empty())
    for step in done.file.trace:
        doubt.apply(step)
    right = done.history.allowed(done.now)
    assert len(right) == 1
    assert Search().explore(doubt.situation(), right, Mode()) is None
    trouble = Search().explore(doubt.situation(), [{None: {}}], Mode())
    assert trouble is not None
    assert "is none of" in trouble.story
    broken = {number: contents for number, contents in doubt.situation().pages.items() if number < 2}
    trouble = Search().explore(replace(doubt.situation(), pages=broken), right, Mode())
    assert trouble is not None
    assert "CorruptionError" in trouble.story


def test_every_operation_does_something_and_gives_the_same_trace_again():
    in_child(operations)


def operations():
    kinds = {}
    for word in ALPHABET:
        at = []
        first = run_words(("tree", "reader", word), at=at)
        again = run_words(("tree", "reader", word))
        assert first.file.trace == again.file.trace, word
        kinds[word] = [step[0] for step in first.file.trace[at[2] :]]
        for tuning in TUNINGS:
            run_words((word,), tuning)
    assert {word for word, steps in kinds.items() if not steps} == {"reader", "end", "sync", "copy", "kill"}
    assert "end" not in kinds["lazy"]
    assert "failed" in kinds["fail"]
    sizes = [step[1] for step in run_words(("cut",)).file.trace if step[0] == "size"]
    assert sizes != sorted(sizes)
    flushes = [run_words(("put",), tuning).file.flushes for tuning in ("plain", "two")]
    assert flushes[1] > flushes[0]
    steps = [step[0] for step in run_words(("group",)).file.trace]
    assert "write" in steps[len(steps) - 1 - steps[::-1].index("begin", steps[::-1].index("begin") + 1) :]


def test_a_large_situation_is_sampled_by_each_strategy():
    pages = dict.fromkeys(range(4), (b"o" * PAGE, b"m" * PAGE, b"n" * PAGE))
    situation = Situation((2, 4), pages)
    rng = random.Random(1)
    for name, strategy in STRATEGIES.items():
        for _ in range(20):
            choice = strategy(situation, rng)
            assert choice[SIZE] in situation.sizes
            assert set(choice) == {SIZE, *pages}
            newest = sum(choice[page] == b"n" * PAGE for page in pages)
            assert newest in {"oldest": {0}, "newest": {4}, "one old among new": {3}, "one new among old": {0, 1}}.get(
                name, range(5)
            )


# ---------------------------------------------------------------- cases


@pytest.mark.parametrize(
    "case",
    [
        Case(("put",)),
        Case((), "two", Mode(512, hostile=True), 7),
        Case(("put", "lazy"), places=((3, {}), (17, {SIZE: 1, 5: 0}))),
    ],
)
def test_a_case_is_written_and_read(case):
    assert Case.parse(str(case)) == case


@pytest.mark.parametrize(
    "text",
    ["", "put", "put/plain/4096", "put/plain/many/0", "fly/plain/4096/0", "put/fast/4096/0", "put/plain/4096/0@3"],
)
def test_what_is_no_case_is_refused(text):
    with pytest.raises(ValueError):
        Case.parse(text)


def test_all_sequences_are_tried_and_none_twice():
    assert len(list(sequences(1))) == len(ALPHABET) - 2  # without "end" and "drop", for which there is nothing yet
    two = list(sequences(2))
    assert len(set(two)) == len(two)
    assert ("tree", "drop") in two
    assert ("drop", "tree") not in two
    own = [list(itertools.islice(crash.cases(5, 2, index), 400)) for index in (0, 1)]
    assert not set(map(str, own[0])) & set(map(str, own[1])) - {str(case) for case in own[0] if len(case.words) > 3}
    assert own[0] == list(itertools.islice(crash.cases(5, 2, 0), 400))


@pytest.mark.untraced
def test_a_short_search_finds_nothing():
    result = crash.run(Options(4.0, 1, 2), Quiet())
    assert result.failures == []
    assert result.cases > 100


def test_a_case_that_cannot_be_replayed_is_not_called_right():
    text = "lazy+sync/plain/4096/0@99:0=0"
    result = crash.run(Options(30.0, 1, 1, text), Quiet())
    assert ["there is no step 99" in failure.story for failure in result.failures] == [True]
    with pytest.raises(ValueError, match="is not operations/tuning"):
        Case.parse("nonsense")


@pytest.mark.parametrize("text", ["birth", "put+lazy/plain/4096/0", "put+lazy/plain/4096/0@14:0=0@5:"])
def test_a_case_is_replayed(capfd, text):
    result = crash.run(Options(1.0, 1, 1, text), Quiet())
    assert result.failures == []
    assert "nothing is wrong" in capfd.readouterr().out


def test_a_failure_is_shrunk_and_fails_again_by_what_it_prints():
    in_child(shrinking)


def shrinking():
    case = Case(("put", "several", "delete", "fill"))
    with prove.switched_on("verify nothing"):
        trouble = crash.attempt(case, Search())
        assert trouble is not None
        failure = shrunk(replace(case, places=trouble.places), trouble.story)
        small = Case.parse(failure.replay)
        assert len(small.words) < len(case.words)
        assert problem_of(small) is not None
    assert problem_of(small) is None


# ---------------------------------------------------------------- the proof


@pytest.mark.untraced
def test_every_bug_that_can_be_switched_on_is_seen_and_nothing_without_it():
    said = Quiet()
    result = prove.run(Options(60.0, 1, 2), said)
    assert result.failures == []
    assert result.counts == {"bugs that were seen": len(BUGS)}
    assert len(BUGS) >= 12
    assert len(said.said) == len(BUGS) + 1


def test_a_blind_harness_is_a_failure(monkeypatch):
    in_child(blind)


def blind():
    real = prove.attempt
    prove.attempt = lambda _case, _search: None
    try:
        result = prove.caught("skip the flush", 1, 0.01)
    finally:
        prove.attempt = real
    assert [failure.replay for failure in result.failures] == ["skip the flush"]
    assert prove.caught("skip the flush", 1, 5.0).failures == []
    file = LazyFile(empty())
    verdict, _ = survive(file)
    assert verdict.problem is None
