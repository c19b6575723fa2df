"""The fuzzer of damaged files: its victims are sound, its forgeries pass the checksums, and it sees what is wrong."""

from __future__ import annotations

import random
import re
import weakref

import pytest

from cowdb.check import check
from cowdb.recovery import believe
from fuzz import corrupt
from fuzz.__main__ import main
from fuzz.corrupt_bench import Bench
from fuzz.corrupt_case import Case, apply, find_victim, parse
from fuzz.corrupt_forge import Forger, cycle
from fuzz.corrupt_run import Runner
from fuzz.corrupt_victim import PATH, victim, victims
from fuzz.harness import Options, Quiet


@pytest.mark.parametrize("name", ["settled", "crashed"])
def test_a_victim_has_every_kind_of_page_and_is_sound(name):
    one = victim(name)
    kinds = set(one.anatomy.kinds.values())
    for kind in ("main", "catalog", "free"):
        assert f"leaf of the {kind} tree" in kinds
    assert kinds >= {"meta", "branch of the main tree", "branch of a named tree", "overflow run", "free page"}
    assert 50 <= one.pages <= 90
    storage = Bench(one.raw).open(PATH, read_only=True)
    meta = believe(storage).meta
    assert meta.carried
    assert meta.free.depth
    assert check(storage, only=meta.transaction) == []


def test_a_case_is_the_same_after_its_text():
    for text in (
        "settled get raw 12288=ff",
        "crashed write sealed 8200=0300 0=zero512 4096=old1:3 8192=page5 cut=9000",
    ):
        assert str(parse(text)) == text
    for text in ("", "settled get", "settled get cooked 1=ff", "settled get raw 1=xx"):
        with pytest.raises(ValueError, match="not a case"):
            parse(text)


def test_the_bench_is_whole_again_whatever_was_done():
    one = victim("settled")
    bench = Bench(one.raw)
    storage = bench.open(PATH, read_only=False)
    mapping = storage.map(storage.size())
    storage.write(5000, [b"abc", b"def"])
    assert mapping[5000:5006] == b"abcdef"
    storage.resize(len(one.raw) + 8192)
    storage.write(len(one.raw) + 10, [b"x"])
    bench.cut(4096)
    bench.restore()
    assert bench.content() == one.raw
    with pytest.raises(OSError, match="space"):
        storage.resize(1 << 40)


def test_mappings_come_to_an_end_in_the_long_run():
    """The story: after half a million cases the harness had no memory left. Each view of a value waited for the end of its
    mapping, to let its snapshot go, and all cases shared one mapping."""
    bench = Bench(victim("settled").raw)
    mapping = bench.map(8192)
    ended = []
    weakref.finalize(mapping, ended.append, True)
    del mapping
    for _ in range(1000):
        bench.map(8192)
        bench.restore()
    assert ended


def test_forged_pages_have_right_checksums_up_to_the_meta_pages():
    """Of what is forged in a leaf's value, nothing shows: the whole file verifies."""
    one = victim("settled")
    leaf = next(page for page, kind in one.anatomy.kinds.items() if kind == "leaf of the main tree")
    place = one.raw.index(b"round", leaf * 4096)
    bench = Bench(one.raw)
    apply(Case("settled", "get", ((place, b"R"),)), one, bench)
    assert check(bench.open(PATH, read_only=True))
    bench.restore()
    apply(Case("settled", "get", ((place, b"R"),), sealed=True), one, bench)
    assert check(bench.open(PATH, read_only=True)) == []


def test_a_cycle_holds_its_own_checksum():
    one = victim("settled")
    branch = next(page for page, kind in one.anatomy.kinds.items() if kind == "branch of the main tree")
    forger = Forger(one)
    _, bodies = forger._places(branch)
    edits = cycle(one, branch, bodies[1])
    bench = Bench(one.raw)
    apply(Case("settled", "get", edits, sealed=True), one, bench)
    page = bench.content()[branch * 4096 : (branch + 1) * 4096]
    assert page[bodies[1] + 18 : bodies[1] + 22] == page[:4]


class Judged(Case):
    """Forged, and judged as if every answer had to be right."""

    strict = True


@pytest.mark.untraced
@pytest.mark.parametrize("target", ["get", "scan", "scan_all", "cursor", "copy", "compact", "real"])
def test_a_wrong_answer_is_seen(target):
    """A forger's values come through the checksums: the model notices, wherever the question leads through them."""
    one = victim("settled")
    places = [at.start() for at in re.finditer(b"round \\d", one.raw) if at.start() // 4096 in one.anatomy.used]
    with Runner() as runner:
        verdicts = [runner.run(Judged("settled", target, ((place, b"R"),), sealed=True)) for place in places]
    assert any(verdict.outcome == "failed" and "Wrong" in verdict.story for verdict in verdicts)


def test_a_hang_and_a_foreign_exception_are_seen(monkeypatch):
    monkeypatch.setattr("fuzz.corrupt_run.SECONDS", 0.2)
    with Runner() as runner:
        runner.targets["spin"] = lambda _trial: list(iter(int, 1))
        runner.targets["raise"] = lambda trial: trial.damaged[0]
        assert "computed" in runner.run(Case("settled", "spin", ())).story
        assert "IndexError" in runner.run(Case("settled", "raise", ())).story


def test_what_fails_is_made_small():
    with Runner() as runner:
        runner.targets["raise"] = lambda trial: {}[0] if trial.bench.content()[9000] == 7 else None
        edits = ((5000, b"abcdef"), (8990, b"0123456789\x07abc"), (20000, b"x" * 40))
        case = Case("settled", "raise", edits)
        failure = runner.failure(case, runner.run(case))
    assert failure is not None
    assert failure.replay == "settled raise raw 9000=07"


@pytest.mark.untraced
def test_a_short_run_finds_nothing_and_tries_everything():
    result = corrupt.run(Options(6.0, 3, 1), Quiet())
    assert [failure.story for failure in result.failures] == []
    assert result.counts["valid"] == result.counts["valid: answered"]
    assert result.cases > 100


def test_one_kind_of_damage_alone_comes_to_its_end(monkeypatch):
    few = [Case("settled", "look", ((at, b"\xee"),)) for at in range(20)]
    monkeypatch.setattr(corrupt, "_flips", lambda seed: iter(few))
    monkeypatch.setattr(corrupt, "_first", lambda runner: iter(()))
    result = corrupt.run(Options(60.0, 1, 1, kinds=("flip",)), Quiet())
    assert (result.cases, result.counts["flip"], result.failures) == (20, 20, [])


@pytest.mark.parametrize("words", [["faults", "--kind", "flip"], ["corrupt", "--kind", "fold"]])
def test_a_kind_that_there_is_not_is_refused(words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--seconds", "1"])
    assert stop.value.code == 2


def test_forging_repeats_from_its_seed():
    forger = Forger(victims()[0])
    first = [forger.forge(random.Random(number)) for number in range(300)]
    assert first == [forger.forge(random.Random(number)) for number in range(300)]
    assert len(set(first)) > 250


def test_a_replay_says_how_it_went():
    progress = Quiet()
    result = corrupt.run(Options(1.0, 1, 1, "settled look raw 4100=ff 100=ff"), progress)
    assert result.failures == []
    assert result.cases == 1
    assert progress.said
    assert find_victim("bomb").name == "bomb"


def test_a_forged_page_that_says_it_is_fuller_than_full_is_counted():
    """The story: `cowdb stat` looked up the tenth of fill of such a leaf in an array, and ended with an IndexError."""
    result = corrupt.run(Options(5.0, 1, 1, replay="settled cli:stat sealed 151581=ff"), Quiet())
    assert result.failures == []


def test_a_forged_page_whose_keys_do_not_rise_is_refused_when_it_is_rebuilt():
    """The story: the compiled kernel laid a key out that was shorter than the prefix of its neighbours, over its memory."""
    forged = (
        "160079=2766d575b64c158b78b872927ab35bbd096058ac80d653310229a10187efc49120d9f5aa4d4cdbe3b944faabb76a332d2a050fe7"
        "f45a4cabf66e59b70522969f 161933=" + 22 * "2d"
    )
    result = corrupt.run(Options(5.0, 1, 1, replay=f"settled write sealed {forged}"), Quiet())
    assert result.failures == []
