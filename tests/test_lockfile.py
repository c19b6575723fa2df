"""The shared words: what they hold, how a state is published, how blocks grow, are left behind and used again (P1)."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from child import Child

import cowdb
from cowdb import format as fmt
from cowdb import lockfile as lockfile_module
from cowdb import meta as meta_page
from cowdb.lockfile import PINS_PER_BLOCK, LockFile, Pin
from cowdb.meta import Meta

OPEN = "from cowdb.lockfile import LockFile; words = LockFile(path, 0o600)"


def state(transaction, page_size=4096, **more):
    return Meta(
        **{
            "page_size": page_size,
            "database_id": b"i" * 16,
            "transaction": transaction,
            "durable": 1,
            "page_count": 10,
            "commit_time": 5,
            "main": fmt.EMPTY_TREE,
            "catalog": fmt.EMPTY_TREE,
            "free": fmt.EMPTY_TREE,
            "carry": b"",
            **more,
        }
    )


def publish(words, transaction, slot=0, **more):
    meta = state(transaction, **more)
    return meta, words.publish(meta, meta_page.encode(meta, slot))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "x.cowdb-lock")


@pytest.fixture
def words(path):
    made = LockFile(path, 0o600)
    made.make()
    yield made
    made.close()


@pytest.fixture
def again(path, words):
    """The same words through another mapping, as another process has them."""
    opened = LockFile(path, 0o600)
    yield opened
    opened.close()


# ---------------------------------------------------------------- words


def test_new_words_say_nothing(words):
    assert not words.made, "nothing is published yet"
    assert words.published == 0
    assert words.durable is None
    assert words.busy, "whoever writes first has to look at the file"
    assert words.writer == 0
    assert not words.waiting
    assert words.passed == 0
    assert list(words.pins(set())) == []


def test_a_file_of_garbage_is_not_taken_for_words(path):
    with open(path, "wb") as file:
        file.write(os.urandom(500_000))
    words = LockFile(path, 0o600)
    assert not words.made
    words.make()
    assert (words.published, words.durable, words.writer) == (0, None, 0)
    assert list(words.pins(set())) == []
    publish(words, 3)
    assert words.made
    words.close()


@pytest.mark.parametrize("size", [0, 1, 4096, 70_000])
def test_a_short_file_is_made_long_enough(path, size):
    with open(path, "wb") as file:
        file.write(b"x" * size)
    words = LockFile(path, 0o600)
    words.make()
    assert words.blocks() >= 32
    assert len(words.own(words.blocks() - 1, 1, 1)) == PINS_PER_BLOCK
    words.close()


def test_the_mode_is_that_of_a_new_file(path):
    words = LockFile(path, 0o640)
    assert stat.S_IMODE(os.stat(path).st_mode) & ~0o640 == 0
    assert not os.get_inheritable(words.fd)
    words.close()


def test_every_word_is_seen_through_another_mapping(words, again):
    for value in ((42, 0), (42, 1), ((1 << 48) - 1, 1), None):
        words.durable = value
        assert again.durable == value
    for value in (False, True, False):
        words.busy = value
        assert again.busy is value
    words.writer = 4_000_000
    assert again.writer == 4_000_000
    words.passed = 3
    words.waiting = True
    assert (again.passed, again.waiting) == (3, True)


def test_making_them_anew_forgets_everything(words, again):
    publish(words, 7)
    words.durable = (7, 1)
    words.busy = False
    words.writer = 12
    words.waiting, words.passed = True, 9
    word = words.own(3, 12, 34)[0]
    words.pin(word, 7, 10)
    again.make()
    assert not words.made
    assert (words.published, words.durable, words.busy, words.writer) == (0, None, True, 0)
    assert (words.waiting, words.passed) == (False, 0)
    assert list(words.pins(set())) == []


# ---------------------------------------------------------------- publishing


def test_what_is_published_is_seen_through_another_mapping(words, again):
    for transaction in range(5, 12):
        meta, word = publish(words, transaction, slot=transaction % 3 % 2, page_count=transaction)
        assert words.published == again.published == word
        assert again.published_meta(word) == meta


@pytest.mark.parametrize("size", fmt.PAGE_SIZES)
def test_a_state_of_any_page_size(words, again, size):
    carry = fmt.pack_runs([(number, 1, 3, 5) for number in range(2, 9)])
    meta, word = publish(words, 6, slot=1, page_size=size, carry=carry)
    assert again.published_meta(word) == meta


def test_a_larger_page_size_before_leaves_nothing_in_a_smaller_one(words):
    publish(words, 6, page_size=32768)
    publish(words, 7, page_size=32768)
    meta, word = publish(words, 8, page_size=4096)
    assert words.published_meta(word) == meta


def test_who_comes_too_late_for_a_state_is_told_so(words):
    _, before = publish(words, 6)
    _, now = publish(words, 7)
    assert words.published_meta(before) is None
    assert words.published_meta(now) is not None


def test_the_same_transaction_published_again_is_another_word(words):
    """So nobody takes a copy for whole that was replaced while he read it."""
    _, before = publish(words, 6)
    _, now = publish(words, 6)
    assert before != now
    assert words.published_meta(before) is None


def test_a_writer_that_dies_while_it_copies_hurts_nobody(words, again):
    """Of two copies, it was at work in the one that is not published."""
    meta, word = publish(words, 6)

    class Killed(BaseException):
        pass

    class Half(bytes):
        """Copied up to the middle, then the process is gone."""

    def die():
        raise Killed

    words.fence = die
    later = state(7)
    with pytest.raises(Killed):
        words.publish(later, Half(meta_page.encode(later, 0)[:100]))
    assert again.published == word
    assert again.published_meta(word) == meta
    later, word = publish(again, 8)
    assert again.published_meta(word) == later


def test_a_copy_that_is_torn_is_not_believed(words):
    _, word = publish(words, 6)
    at = lockfile_module.COPIES_AT + (word & 1) * lockfile_module.COPY_SIZE
    words._mapping[at + 40] ^= 1
    assert words.published_meta(word) is None


# ---------------------------------------------------------------- blocks and pins


def test_pins_of_a_block_are_seen_until_they_are_taken_back(words, again):
    handles = words.own(4, 12, 34)
    words.pin(handles[0], 41, 100)
    words.pin(handles[-1], 42, 101)
    assert list(again.pins(set())) == [(4, [Pin(12, 34, 41, 100), Pin(12, 34, 42, 101)])]
    assert list(again.pins({4})) == [], "one's own are not asked for"
    words.unpin(handles[0])
    assert list(again.pins(set())) == [(4, [Pin(12, 34, 42, 101)])]
    words.unpin(handles[-1])
    assert list(again.pins(set())) == []


def test_blocks_do_not_overlap(words):
    handles = [handle for block in range(words.blocks()) for handle in words.own(block, block, 0)]
    for handle in handles:
        words.pin(handle, handle, handle + 1)
    found = [pin for _, pins in words.pins(set()) for pin in pins]
    assert len(found) == len(handles) == words.blocks() * PINS_PER_BLOCK
    assert all(pin.page_count == pin.transaction + 1 for pin in found)
    assert {pin.owner for pin in found} == set(range(words.blocks()))


def test_who_claims_a_block_clears_the_pins_of_a_dead_process(words, again):
    for handle in words.own(0, 12, 34):
        words.pin(handle, 41, 100)
    fresh = again.own(0, 56, 78)
    assert list(words.pins(set())) == []
    again.pin(fresh[5], 43, 7)
    assert list(words.pins(set())) == [(0, [Pin(56, 78, 43, 7)])]


def test_blocks_that_another_mapping_has_added_are_found(words, again):
    mine = words.own(0, 1, 1)[0]
    words.pin(mine, 40, 10)
    before = words.blocks()
    again.add_blocks()
    again.add_blocks()
    assert words.blocks() == again.blocks() == 4 * before
    last = again.own(4 * before - 1, 2, 2)[-1]
    again.pin(last, 41, 11)
    assert list(words.pins(set())) == [(0, [Pin(1, 1, 40, 10)]), (4 * before - 1, [Pin(2, 2, 41, 11)])]
    words.unpin(mine)
    assert [block for block, _ in again.pins(set())] == [4 * before - 1], "words before and after the growth are one"


def test_words_are_seen_by_another_process(words, path):
    meta, word = publish(words, 6)
    with Child(path=path) as other:
        other(OPEN)
        assert other("words.published_meta(words.published)") == meta
        other("words.add_blocks(); words.pin(words.own(40, os.getpid(), 9)[0], 6, 10)")
        assert list(words.pins(set())) == [(40, [Pin(other.pid, 9, 6, 10)])]
        words.publish(state(7), meta_page.encode(state(7), 0))
        assert other("words.published_meta(words.published).transaction") == 7
        assert other("words.published_meta(word) is None", word=word)


def test_it_may_be_closed_twice(path):
    words = LockFile(path, 0o600)
    words.close()
    words.close()


def test_a_directory_in_its_place_raises(tmp_path):
    with pytest.raises(IsADirectoryError):
        LockFile(str(tmp_path), 0o600)


def test_unmapping_lets_the_words_go_and_may_be_repeated(path):
    words = LockFile(path, 0o600)
    words.make()
    words.add_blocks()
    words.close()
    words.unmap()
    with pytest.raises(IndexError):
        words.published  # noqa: B018 - looking is enough
    words.unmap()


def test_words_that_somebody_is_looking_at_stay_mapped(path):
    words = LockFile(path, 0o600)
    words.make()
    part = words._words[:4]
    words.unmap()
    assert part[3] == 1
    words.close()


# ---------------------------------------------------------------- a full disk


def full(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.guarantee
def test_there_is_room_on_the_disk_for_every_word(path):
    """The story: the file was a hole, and on a full disk the first store into the mapping killed the process."""
    with open(path, "wb") as sparse:
        sparse.truncate(200_000)  # as an older one left it
    words = LockFile(path, 0o600)
    words.make()
    for _ in range(3):
        found = os.stat(path)
        assert found.st_blocks * 512 >= found.st_size >= 100_000
        words.add_blocks()
    words.close()


@pytest.mark.guarantee
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="it asks for room in another way")
def test_a_full_disk_has_no_room_for_a_lock_file_and_says_so(tmp_path, monkeypatch):
    path = str(tmp_path / "db")
    with cowdb.open(path) as db:
        db[b"k"] = b"v"
    os.unlink(path + "-lock")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(cowdb.FullError, match="no room on the disk for the lock file"):
            cowdb.open(path)
        with cowdb.open(path, read_only=True) as db:
            assert db[b"k"] == b"v"
    with cowdb.open(path) as db:
        assert db.check() == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="it asks for room in another way")
def test_a_full_disk_has_no_room_for_more_blocks(words, monkeypatch):
    before = words.blocks()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(cowdb.FullError):
            words.add_blocks()
    assert words.blocks() == before
    words.add_blocks()
    assert words.blocks() == 2 * before


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="it asks for room in another way")
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_keep_room_gets_zeros(tmp_path, monkeypatch, code):
    def unsupported(*_arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", unsupported)
        for _ in range(2):
            with cowdb.open(tmp_path / "db") as db:
                db[b"k"] = b"v"
                found = os.stat(tmp_path / "db-lock")
                assert found.st_blocks * 512 >= found.st_size >= 100_000
