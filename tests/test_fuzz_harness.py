"""What the parts of the fuzzer share: work in processes whose deaths are findings, results that add up, the command."""

from __future__ import annotations

import os
import signal
import time

import pytest

from fuzz import harness
from fuzz.__main__ import PARTS, main
from fuzz.harness import KEPT_FAILURES, Bar, Failure, Options, Quiet, Result, describe_exit, spread


def steady(share):
    for number in range(10):
        if share.mine(number):
            share.announce(f"case {number}")
            yield Result(cases=1, counts={"tried": 1})


def dying(share):
    yield Result(cases=1)
    share.announce(f"the last case of {share.index}")
    if share.index == 1:
        os.kill(os.getpid(), signal.SIGSEGV)


def raising(share):
    share.announce("a division")
    yield Result(cases=1 // share.index if share.index != 1 else 1)


def hanging(share):
    share.announce("for ever")
    yield Result(cases=1)
    if not share.index:
        time.sleep(1000)


def babbling(share):
    share.announce("without end")
    while True:
        yield Result(cases=1)


def looking(share):
    yield Result(counts={os.environ.get("FUZZ_TEST", "unset"): 1})


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_shares_of_all_workers_add_up(jobs):
    progress = Quiet()
    result = spread(steady, Options(30.0, 1, jobs), progress)
    assert result == Result(10, [], {"tried": 10})
    assert progress.done == 10


def test_a_worker_that_dies_by_a_signal_is_a_failure_that_names_its_case():
    result = spread(dying, Options(30.0, 1, 2), Quiet())
    assert result.cases == 2
    assert [(failure.replay, "SIGSEGV" in failure.story) for failure in result.failures] == [
        ("the last case of 1", True)
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exception_is_a_failure_with_its_traceback(jobs):
    result = spread(raising, Options(30.0, 1, jobs), Quiet())
    assert result.cases == jobs - 1
    [failure] = result.failures
    assert failure.replay == "a division"
    assert "ZeroDivisionError" in failure.story


@pytest.mark.parametrize("work", [hanging, babbling])
def test_a_worker_that_does_not_end_is_killed_and_is_a_failure(monkeypatch, work):
    monkeypatch.setattr(harness, "GRACE_SECONDS", 0.2)
    result = spread(work, Options(2.0, 1, 2), Quiet())
    assert {failure.replay for failure in result.failures} <= {"for ever", "without end"}
    assert len(result.failures) == (1 if work is hanging else 2)
    assert all("still running" in failure.story for failure in result.failures)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_environment_of_the_workers_is_not_ours(jobs):
    result = spread(looking, Options(30.0, 1, jobs), Quiet(), environment={"FUZZ_TEST": "seen"})
    assert result.counts == {"seen": jobs}
    assert "FUZZ_TEST" not in os.environ


def test_results_add_up_and_forget_no_failure_silently():
    total = Result(1, [Failure("a", "1")], {"x": 1}, "no root")
    total.merge(Result(2, [Failure("b", "2")] * KEPT_FAILURES, {"x": 2, "y": 1}, "no strace"))
    total.merge(Result(skipped="no root"))
    assert total.cases == 3
    assert len(total.failures) == KEPT_FAILURES
    assert total.counts == {"x": 3, "y": 1, "failures not kept": 1}
    assert total.skipped == "no root; no strace"


def test_the_end_of_a_process_in_words():
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-99) == "killed by signal 99"
    assert describe_exit(3) == "exit code 3"


def test_a_bar_is_one_line_when_nobody_watches(capsys):
    with Bar("crash", 5.0) as bar:
        bar.total(None)
        bar.advance(1234)
        bar.say("something")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "something"
    assert lines[1].startswith("   crash: 1,234 cases in ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["crash", "--seconds", "0"],
        ["crash", "--jobs", "0"],
        ["all", "--replay", "x"],
        ["crash", "--replay", "nonsense"],
        ["prove", "--replay", "no such bug"],
    ],
)
def test_a_wrong_command_line_is_explained(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_help_names_every_part(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(part in text for part in [*PARTS, "all"])
