"""The part `faults` of the harness: it tries what it says, it finds what is wrong, and it finds nothing else."""

from __future__ import annotations

import contextlib

import pytest

from cowdb.database import Database
from cowdb.errors import FullError, PoisonedError
from cowdb.pager import Pager
from cowdb.poison import Poison
from cowdb.testing import FaultyDisk, FaultyStorage, MemoryDisk
from fuzz import faults, faults_strace
from fuzz.faults_cases import KINDS, SHORT, Case, calls_of, parse, play, shrink
from fuzz.faults_oracle import EMPTY, PromiseError, live_on
from fuzz.faults_play import Play
from fuzz.faults_scenarios import SCENARIOS, scenario
from fuzz.harness import Options, Quiet


@pytest.fixture(scope="module")
def calls():
    return {name: calls_of(name) for name in SCENARIOS}


def test_there_are_forty_scenarios_and_none_fails_by_itself(calls):
    assert len(SCENARIOS) >= 40
    assert min(map(len, calls.values())) > 12
    assert {"write", "resize", "reserve", "flush", "flush_directory", "map", "read", "link"} <= {
        call for made in calls.values() for call in made
    }


def test_the_scenarios_do_what_their_names_say(calls):
    resizes = {name: made.count("resize") for name, made in calls.items()}
    assert resizes["a tail that is cut"] > resizes["one put"]
    assert calls["two flushes"].count("flush") > calls["small and large"].count("flush")
    assert calls["lazy"].count("flush") < calls["replaced"].count("flush")
    assert calls["early writes"].count("write") > 2 * calls["growth"].count("write")
    # In the group, two of the three share a flush, and the last put of the scenario comes after them.
    assert calls["a group"].count("flush") - calls["one put"].count("flush") == 3


@pytest.mark.untraced
def test_every_call_of_a_scenario_is_struck(calls):
    cases = faults.all_cases("calls", "one put")
    assert {case.at for case in cases} == set(range(1, len(calls["one put"]) + 1))
    assert {case.kind for case in cases} == set(KINDS)
    assert {case.forever for case in cases} == {False, True}
    assert {case.kind for case in faults.all_cases("short", "one put")} == set(SHORT)
    last = faults.all_cases("close", "one put")
    assert min(case.at for case in last) == len(calls["one put"]) + 1
    cases += last
    cases = [case for case in cases if case.kind in {"EIO", "ENOSPC", "EDQUOT.half"}]
    struck = [play(case) for case in cases]
    assert all(fired for _, fired in struck)
    assert sum(judged for judged, _ in struck) > 2 * len(cases)


@pytest.mark.untraced
@pytest.mark.parametrize("name", ["lazy and synced", "two flushes", "a group", "killed"])
def test_a_power_cut_anywhere_behind_a_failed_flush(name):
    judged = [play(case) for case in faults.all_cases("flush", name)]
    assert all(fired for _, fired in judged)
    assert sum(count for count, _ in judged) > 8 * len(judged)


@pytest.mark.untraced
@pytest.mark.parametrize("name", ["small and large", "early writes", "a large group"])
def test_short_writes(name):
    cases = faults.all_cases("short", name)
    last = max(case.at for case in cases)
    assert all(play(case)[1] for case in cases if case.at % 9 == 1 or case.at == last)


@pytest.mark.untraced
def test_a_short_run_finds_nothing():
    result = faults.run(Options(seconds=1.0, seed=1, jobs=1), Quiet())
    assert result.failures == []
    assert result.cases > 0
    assert result.counts["states judged"] > 0


def test_a_case_is_a_line_of_text():
    case = Case("calls", "small and large", "ENOSPC.half", forever=True, at=17, steps=(0, 2))
    assert str(case) == "calls:small and large:ENOSPC.half:for good:17:0,2"
    assert parse(str(case)) == case
    assert parse("short:growth:1:once:9:*").steps is None
    for wrong in (
        "",
        "calls:no such:EIO:once:1:*",
        "calls:growth:EXYZ:once:1:*",
        "calls:growth:EIO:once:x:*",
        "x:growth:EIO:once:1:*",
    ):
        with pytest.raises(ValueError, match="no case"):
            parse(wrong)


def test_random_scenarios_repeat():
    one, two = scenario("random-7-12"), scenario("random-7-12")
    assert [step.name for step in one.steps] == [step.name for step in two.steps]
    assert len(one.steps) == 12
    assert one.options == two.options
    assert play(Case("calls", "random-7-12", "EIO", forever=False, at=20))[1]


# ---------------------------------------------------------------- it sees what is wrong


def unseen(monkeypatch):
    """A write that fails is taken for a success."""
    real = FaultyStorage.write

    def write(self, offset, buffers):
        with contextlib.suppress(OSError):
            real(self, offset, buffers)

    monkeypatch.setattr(FaultyStorage, "write", write)


def retried(monkeypatch):
    """A flush that fails is tried again, which proves nothing."""
    real = Pager._flush

    def flush(self, *state):
        try:
            self.storage.flush()
        except OSError:
            real(self, *state)

    monkeypatch.setattr(Pager, "_flush", flush)


def not_poisoned(monkeypatch):
    monkeypatch.setattr(Poison, "refuse", lambda self: None)


def name_forgotten(monkeypatch):
    monkeypatch.setattr(FaultyStorage, "flush_name", lambda self: None)


def untyped(monkeypatch):
    def fail(self, what, error):
        raise error

    monkeypatch.setattr(Poison, "not_committed", fail)


def not_asserted_again(monkeypatch):
    monkeypatch.setattr("cowdb.pager.reassert", lambda storage, *_: storage.flush_name() or storage.flush() or 1)


BUGS = [
    (unseen, "calls:one put:EIO:once:29:*"),
    (retried, "flush:replaced:EIO:once:4:*"),
    (not_poisoned, "calls:replaced:EIO:once:31:*"),
    (name_forgotten, "calls:one put:EIO:once:7:*"),
    (untyped, "calls:one put:EIO:once:26:*"),
    (not_asserted_again, "flush:killed:EIO:once:3:*"),
]


@pytest.mark.parametrize(("bug", "case"), BUGS, ids=lambda value: getattr(value, "__name__", None))
def test_the_oracle_sees_the_bug(monkeypatch, bug, case):
    assert play(parse(case))[1], "without the bug all is well"
    bug(monkeypatch)
    with pytest.raises(PromiseError):
        play(parse(case))


def test_a_failure_is_made_smaller_and_can_be_replayed(monkeypatch):
    name_forgotten(monkeypatch)
    case = Case("calls", "lazy and synced", "EIO", forever=False, at=7)
    with pytest.raises(PromiseError, match="the file is gone"):
        play(case)
    small = shrink(case)
    assert len(small.steps) == 1
    result = faults.run(Options(1.0, 0, 1, replay=str(small)), Quiet())
    assert [failure.replay for failure in result.failures] == [str(small)]
    monkeypatch.undo()
    quiet = Quiet()
    assert faults.run(Options(1.0, 0, 1, replay=str(small)), quiet).failures == []
    assert "nothing wrong" in quiet.said[-1]


def test_the_oracle_of_the_next_process_sees_loss_and_damage():
    disk = MemoryDisk()
    played = Play(disk, {})
    played.run(scenario("small and large").steps)
    played.close()
    assert live_on(disk.copy(), [played.model]) == played.model
    with pytest.raises(PromiseError, match="none of"):
        live_on(disk.copy(), [EMPTY])
    with pytest.raises(PromiseError, match="none of"):
        live_on(MemoryDisk(), [played.model])
    disk.install("/db", disk.content("/db")[:9000])
    with pytest.raises(PromiseError, match="does not open|does not go on"):
        live_on(disk, [played.model])


def test_errors_are_sorted_by_what_they_say():
    disk = FaultyDisk(MemoryDisk())
    played = Play(disk, {})
    played.run(scenario("one put").steps)
    base = played.model
    disk.fail(KINDS["ENOSPC"][0], call="write")
    scenario("lazy").steps[1].act(played)
    assert isinstance(played.errors[-1], FullError)
    assert played.standing == played.lasting == [base]
    disk.fail(KINDS["EIO"][0], call="flush")
    scenario("replaced").steps[1].act(played)
    assert isinstance(played.errors[-1], PoisonedError)
    assert played.poisoned
    assert [state[None][b"a"] for state in played.standing] == [b"1", b"2"]
    monster = Play(disk, {})
    monster.db, monster.model = played.db, EMPTY
    with pytest.raises(PromiseError, match="a reader sees"):
        monster.look()
    played.close()
    assert isinstance(played.db, Database | None)


# ---------------------------------------------------------------- real system calls


needs_strace = pytest.mark.skipif(faults_strace.unavailable() is not None, reason=str(faults_strace.unavailable()))


@needs_strace
@pytest.mark.parametrize("case", [
    "strace:fdatasync:EIO:once:3:replaced",
    "strace:pwritev,pwritev2,pwrite64:ENOSPC:for good:5:small and large",
    "strace:ftruncate:EIO:once:2:growth",
    "strace:fsync:EIO:once:1:one put",
])  # fmt: skip
def test_system_calls_that_fail(case):
    quiet = Quiet()
    result = faults.run(Options(5.0, 0, 1, replay=case), quiet)
    assert result.failures == []
    assert "Error" in quiet.said[-1], "the fault did not show"


@needs_strace
def test_system_calls_that_are_interrupted_do_not_show():
    quiet = Quiet()
    result = faults.run(Options(5.0, 0, 1, replay="strace:fdatasync:EINTR:once:3:replaced"), quiet)
    assert result.failures == []
    assert quiet.said[-1].endswith("none")


@pytest.mark.untraced
def test_without_strace_that_is_said(monkeypatch):
    monkeypatch.setattr(faults_strace, "unavailable", lambda: "there is no strace")
    result = faults.run(Options(0.5, 1, 1), Quiet())
    assert result.skipped == "real system calls: there is no strace"
    assert result.failures == []
    assert faults_strace.replay("strace:fsync:EIO:once:1:one put", Quiet()).skipped == "there is no strace"
