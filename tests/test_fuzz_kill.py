"""The part `kill` of the harness: the lives of a few rounds, and that loss is seen."""

from __future__ import annotations

import os
import tempfile

import pytest

import cowdb
import cowdb.storage as storage_module
from cowdb.pager import Pager
from fuzz import kill, kill_device
from fuzz.faults_cases import scratch
from fuzz.faults_oracle import PromiseError
from fuzz.harness import Options, Quiet, Result
from fuzz.kill_child import RECORD, _into, apply, changes, counter
from fuzz.kill_device import SYSTEMS, unavailable
from fuzz.kill_life import Life


@pytest.fixture(autouse=True)
def _kept_files_go_away(tmp_path, monkeypatch):
    """What a failed life keeps is kept in the test's directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def lived(kind, seed, rounds, monkeypatch):
    """A life of so many rounds."""
    monkeypatch.setattr(kill, "ROUNDS", rounds)
    total = Result()
    for result in kill._life(kind, seed):
        total.merge(result)
    return total


def why_not(system):
    with scratch() as directory:
        return unavailable(system, directory)


# ---------------------------------------------------------------- the model


def test_a_transaction_follows_from_its_number(tmp_path):
    model = {None: {}}
    with cowdb.open(tmp_path / "db", durability="lazy") as db:
        for number in range(1, 80):
            with db.write() as transaction:
                _into(transaction, 5, 1, number)
            apply(model, 5, 1, number)
        with db.read() as snapshot:
            found = {
                None: dict(snapshot.items()),
                **{name: dict(snapshot.tree(name).items()) for name in snapshot.trees()},
            }
    assert found[None].pop(b"total") == b"79"
    assert found == model
    assert found[None][counter(1)] == b"79"
    assert list(changes(5, 1, 3)) == list(changes(5, 1, 3)) != list(changes(6, 1, 3))
    assert {what for number in range(80) for what, *_ in changes(5, 1, number)} == {"put", "delete", "range"}


# ---------------------------------------------------------------- lives


# Of the herd, most are killed before their first commit where processes start slowly.
@pytest.mark.parametrize(("kind", "rounds"), [("full", 8), ("lazy", 8), ("group", 8), ("herd", 60)])
def test_a_short_life(kind, rounds, monkeypatch):
    result = lived(kind, 3, rounds, monkeypatch)
    assert result.failures == []
    assert result.cases == rounds
    assert result.counts[kill.NAMES[kind]] == rounds
    assert result.counts["commits acknowledged"] > 0


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_a_file_system_that_is_cut_off(system, monkeypatch):
    reason = why_not(system)
    if reason is not None:
        pytest.skip(f"{system}: {reason}")
    result = lived(system, 4, 3, monkeypatch)
    assert result.failures == []
    assert result.cases == 3


def test_a_short_run_finds_nothing(monkeypatch):
    monkeypatch.setattr(kill, "ROUNDS", 5)
    result = kill.run(Options(2.0, 1, 1), Quiet())
    assert result.failures == []
    assert result.cases > 0


# ---------------------------------------------------------------- it sees what is wrong


def test_what_was_promised_and_is_not_in_the_file_is_seen(monkeypatch):
    monkeypatch.setattr(Pager, "_write_meta", lambda *_: None)
    result = lived("full", 1, 6, monkeypatch)
    assert "was promised" in result.failures[0].story
    assert "is kept in" in result.failures[0].story
    assert result.failures[0].replay == "full:1"


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_a_flush_that_is_left_out_is_seen_when_the_file_system_is_cut_off(system, monkeypatch):
    reason = why_not(system)
    if reason is not None:
        pytest.skip(f"{system}: {reason}")
    monkeypatch.setattr(storage_module, "_flush_data", lambda storage: None)
    failures = [failure for seed in range(3) for failure in lived(system, seed, 6, monkeypatch).failures]
    assert failures


def test_an_error_in_a_process_is_a_failure(tmp_path):
    life = Life(1, str(tmp_path / "no such directory" / "db"), 1, "full")
    process = life.start([0])
    process.wait_for(1, 20)
    with pytest.raises(PromiseError, match="FileNotFoundError"):
        life.end(process)


def test_damage_is_seen(tmp_path):
    path = tmp_path / "db"
    life = Life(1, str(path), 1, "full")
    process = life.start([0])
    process.wait_for(10, 20)
    life.end(process)
    life.judge()
    assert life.told[0] >= 9
    content = path.read_bytes()
    life.models[0][None][b"0-extra"] = b""
    with pytest.raises(PromiseError, match="0-extra"):
        life.judge()
    del life.models[0][None][b"0-extra"]
    with cowdb.open(path) as db:
        db[counter(0)] = b"3"
    with pytest.raises(PromiseError, match="was promised"):
        life.judge()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PromiseError, match="does not open|does not go on|checker"):
        life.judge()
    assert os.path.exists(os.path.join(life.keep(), "db"))


def test_promises_after_the_cut_do_not_count(tmp_path):
    life = Life(1, str(tmp_path / "db"), 1, "full", survives=False)
    process = life.start([0])
    process.wait_for(4, 20)
    process.close_the_book()
    promised = process.promised // RECORD.size - 1
    process.wait_for(promised + 6, 20)
    life.end(process, broken=True)
    assert life.least == [promised]
    assert life.told[0] > promised


# ---------------------------------------------------------------- skips and replays


def test_without_root_no_file_system_is_cut_off(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unavailable("ext4", str(tmp_path)) == "it takes root"
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kill_device.shutil, "which", lambda tool: None)
    assert unavailable("xfs", str(tmp_path)) == "there is no mkfs.xfs"
    monkeypatch.setattr(kill, "ROUNDS", 1)
    result = kill.run(Options(0.2, 1, 1), Quiet())
    assert "cutting off ext4" in result.skipped
    assert "cutting off xfs" in result.skipped


def test_a_life_is_replayed(monkeypatch):
    monkeypatch.setattr(kill, "ROUNDS", 2)
    monkeypatch.setattr(kill, "REPLAYS", 2)
    quiet = Quiet()
    assert kill.run(Options(1.0, 0, 1, replay="full:7"), quiet).cases == 4
    assert "nothing wrong" in quiet.said[-1]
    for wrong in ("", "full", "full:x", "no such:1"):
        with pytest.raises(ValueError, match="no case"):
            kill.run(Options(1.0, 0, 1, replay=wrong), Quiet())
