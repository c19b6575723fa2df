"""The fuzzer without memory: what it strikes is judged, and deaths of the interpreter are told apart."""

from __future__ import annotations

import signal

import pytest

from cowdb import kernel
from fuzz import oom
from fuzz.harness import Options, Quiet
from fuzz.oom_scenes import LOST

pytestmark = pytest.mark.skipif(oom.missing() is not None, reason=str(oom.missing()))


class Answers(oom.Children):
    """Children that say what they were told to."""

    def __init__(self, *answers):
        super().__init__(plain=True)
        self.answers = list(answers)

    def ask(self, _line):
        return self.answers.pop(0)


@pytest.mark.skipif(kernel.FORM == "compiled", reason="a compiled get or put asks Python for hardly any memory")
@pytest.mark.parametrize("scene", ["get", "put", "put-large", "delete-range"])
def test_a_change_without_memory_raises_memory_error_and_can_be_aborted(scene):
    with oom.Children() as children:
        count = children.ask(f"count {scene}")
        assert 10 < count < 100_000
        outcomes = {
            children.judge(scene, way, k)[:2] for way in oom.WAYS for k in range(0, count + 40, max(1, count // 6))
        }
    assert ("MemoryError", "") in outcomes
    assert outcomes <= {("MemoryError", ""), ("done", "")}


def test_deaths_hangs_and_stories_are_told_apart():
    died = {"signal": int(signal.SIGSEGV), "where": "here"}
    hung = {"signal": int(signal.SIGALRM), "where": "there"}
    killed = {"signal": int(signal.SIGTERM)}
    children = Answers(died, hung, killed, {"story": "bad", "reached": True})
    assert children.judge("put", "once", 1) == ("the interpreter itself died (SIGSEGV)", "", "here")
    assert children.judge("put", "once", 1)[:2] == ("failed", "it hangs (at there)")
    assert children.judge("put", "once", 1)[0] == "failed"
    assert children.judge("put", "once", 1)[:2] == ("failed", "bad")


def test_a_replay_runs_one_case_and_nonsense_is_refused():
    progress = Quiet()
    result = oom.run(Options(5.0, 1, 1, "put once 3"), progress)
    assert result.cases == 1
    assert result.failures == []
    with pytest.raises(ValueError, match="not a case"):
        oom.run(Options(5.0, 1, 1, "put twice 3"), progress)


def test_where_it_cannot_run_it_says_why(monkeypatch):
    monkeypatch.setattr(oom, "missing", lambda: "no switch")
    assert oom.run(Options(1.0, 1, 1), Quiet()).skipped == "no switch"


def test_an_exception_that_the_interpreter_lost_is_told_from_one_that_compiled_code_lost():
    lost = [
        "error return without exception set",
        "<function open at 0x7f00> returned NULL without setting an exception",
    ]
    assert all(LOST.fullmatch(text) for text in lost)
    ours = "<built-in method put of cowdb._kernel.Writer object at 0x7f00> returned NULL without setting an exception"
    assert not LOST.fullmatch(ours)
    assert not LOST.fullmatch("<cyfunction scan at 0x7f00> returned NULL without setting an exception")
