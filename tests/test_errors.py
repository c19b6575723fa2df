"""Errors: what they are, what they carry, what they say, and that they survive a pickle."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from cowdb import errors

EXAMPLES: list[tuple[errors.Error, type[Exception], dict[str, object], str]] = [
    (errors.Error("anything"), Exception, {}, "anything"),
    (
        errors.NotADatabaseError("a.cowdb", "it is empty"),
        ValueError,
        {"path": "a.cowdb", "reason": "it is empty"},
        "'a.cowdb' is not a cowdb database: it is empty",
    ),
    (
        errors.VersionError("a.cowdb", "format version 2"),
        ValueError,
        {"path": "a.cowdb", "reason": "format version 2"},
        "'a.cowdb' needs a newer cowdb: format version 2",
    ),
    (
        errors.LockTimeoutError("the writer lock", 2.5),
        TimeoutError,
        {"what": "the writer lock", "timeout": 2.5, "holder": None},
        "the writer lock was not free within 2.5 s",
    ),
    (
        errors.LockTimeoutError("the writer lock", 0, 17),
        TimeoutError,
        {"timeout": 0, "holder": 17},
        "the writer lock was not free within 0 s; process 17 holds it",
    ),
    (errors.KeyNotFoundError(b"k"), KeyError, {"key": b"k", "kind": ""}, "b'k'"),
    (errors.KeyNotFoundError("users", "tree"), KeyError, {"key": "users", "kind": "tree"}, "there is no tree 'users'"),
    (
        errors.KeySizeError(3000, 2000),
        ValueError,
        {"size": 3000, "limit": 2000},
        (
            "key of 3000 bytes is too long: the limit is 2000 bytes at this page size; "
            "store long data in the value, or choose a larger page_size for a new file"
        ),
    ),
    (errors.ReadOnlyError("no"), OSError, {}, "no"),
    (errors.ClosedError("the database is closed"), ValueError, {}, "the database is closed"),
    (errors.ForkedError("begun before the fork"), RuntimeError, {}, "begun before the fork"),
    (errors.FullError("the disk is full"), OSError, {}, "the disk is full"),
    (
        errors.CorruptionError(7, "its checksum does not hold"),
        OSError,
        {"page_number": 7, "reason": "its checksum does not hold"},
        "the file is damaged: page 7: its checksum does not hold",
    ),
    (
        errors.CorruptionError(0, "torn"),
        OSError,
        {"page_number": 0},
        "the file is damaged: page 0: torn",
    ),
    (
        errors.CorruptionError(-1, "no meta page"),
        OSError,
        {"page_number": -1},
        "the file is damaged: no meta page",
    ),
    (errors.PoisonedError("reopen it"), OSError, {}, "reopen it"),
]
IDS = [f"{type(error).__name__}{error.args}" for error, *_ in EXAMPLES]


def test_each_error_has_an_example_and_is_exported() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)
    assert defined == {type(error).__name__ for error, *_ in EXAMPLES}


@pytest.mark.parametrize(("error", "base", "data", "sentence"), EXAMPLES, ids=IDS)
def test_what_an_error_is_and_says(
    error: errors.Error, base: type[Exception], data: dict[str, object], sentence: str
) -> None:
    assert isinstance(error, errors.Error)
    assert isinstance(error, base)
    assert str(error) == sentence
    assert {name: getattr(error, name) for name in data} == data


@pytest.mark.parametrize(("error", "base", "data", "sentence"), EXAMPLES, ids=IDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_a_pickle(
    error: errors.Error, base: type[Exception], data: dict[str, object], sentence: str, protocol: int
) -> None:
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert twin.args == error.args
        assert str(twin) == sentence
        assert {name: getattr(twin, name) for name in data} == data


def test_errors_are_caught_as_the_built_in_that_a_caller_expects() -> None:
    with pytest.raises(KeyError):
        raise errors.KeyNotFoundError("users")
    with pytest.raises(OSError, match="damaged"):
        raise errors.CorruptionError(3, "torn")
    with pytest.raises(TimeoutError):
        raise errors.LockTimeoutError("x", 1)


def test_an_error_of_the_system_keeps_its_number() -> None:
    """A full disk must still be told from others by `errno`."""
    error = errors.FullError(28, "No space left on device", "a.cowdb")
    assert (error.errno, error.filename) == (28, "a.cowdb")
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.errno, twin.filename, type(twin)) == (28, "a.cowdb", errors.FullError)
    assert str(twin) == "[Errno 28] No space left on device: 'a.cowdb'"


def test_own_arguments_are_not_taken_for_those_of_the_system() -> None:
    """`OSError` makes an errno of the first of two arguments: page 2 would have been "no such file"."""
    for error in (errors.CorruptionError(2, "torn"), errors.LockTimeoutError("the writer lock", 1.5, 17)):
        for twin in (error, pickle.loads(pickle.dumps(error))):
            assert (twin.errno, twin.strerror, twin.filename) == (None, None, None)
    assert errors.LockTimeoutError("the writer lock", 1.5, 17).args == ("the writer lock", 1.5, 17)
