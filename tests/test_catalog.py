"""Names to trees: what a name may be, what is done with trees, and catalogs that make no sense."""

from __future__ import annotations

import handmade
import pytest
from kernel import Kernel, database, numbered

from cowdb import format as fmt
from cowdb.catalog import find_tree, name_key, tree_names
from cowdb.database import open_on
from cowdb.errors import ClosedError, CorruptionError, Error, KeyNotFoundError, KeySizeError
from cowdb.meta import Meta
from cowdb.testing import MemoryDisk

LIMIT = fmt.max_key_size(4096)


# ---------------------------------------------------------------- names


def test_a_name_is_its_utf8():
    assert name_key("users", LIMIT) == b"users"
    assert name_key("größe 木", LIMIT) == "größe 木".encode()
    assert name_key("\0", LIMIT) == b"\0"
    assert name_key("n" * LIMIT, LIMIT) == b"n" * LIMIT


def test_a_name_is_a_string_of_the_right_length():
    for wrong in (b"users", None, 5, ["a"]):
        with pytest.raises(TypeError, match="is a str"):
            name_key(wrong, LIMIT)
    with pytest.raises(ValueError, match="not empty"):
        name_key("", LIMIT)
    with pytest.raises(KeySizeError) as caught:
        name_key("ö" * LIMIT, LIMIT)
    assert caught.value.size == 2 * LIMIT
    with pytest.raises(ValueError, match="surrogates"):
        name_key("\udc80", LIMIT)


def test_wrong_names_in_a_database():
    with database() as db, db.write() as txn:
        calls = [txn.tree, txn.drop, lambda name: txn.rename(name, "new"), lambda name: txn.tree(name, create=True)]
        for call in calls:
            for wrong in (b"users", None, 5):
                with pytest.raises(TypeError):
                    call(wrong)
            with pytest.raises(ValueError, match="not empty"):
                call("")
        txn.tree("here", create=True)
        for wrong in (b"users", None):
            with pytest.raises(TypeError):
                txn.rename("here", wrong)
        with pytest.raises(ValueError, match="not empty"):
            txn.rename("here", "")
        assert txn.trees() == ["here"]


# ---------------------------------------------------------------- trees


def test_trees_are_made_kept_renamed_and_dropped():
    with database() as db:
        with db.write() as txn:
            with pytest.raises(KeyNotFoundError):
                txn.tree("users")
            users = txn.tree("users", create=True)
            assert txn.tree("users") is txn.tree("users", create=True) is users
            users.update(numbered(500))
            txn.tree("empty", create=True)
            txn.tree("größe 木", create=True)[b"k"] = b"v"
            txn[b"main"] = b"tree"
            assert txn.trees() == ["empty", "größe 木", "users"]
        with db.read() as old:
            with db.write() as txn:
                txn.rename("users", "people")
                txn.rename("people", "people")
                assert txn.trees() == ["empty", "größe 木", "people"]
                assert dict(txn.tree("people")) == dict(numbered(500))
                with pytest.raises(KeyNotFoundError):
                    txn.tree("users")
                with pytest.raises(KeyNotFoundError):
                    txn.rename("users", "x")
                with pytest.raises(ValueError, match="already"):
                    txn.rename("people", "empty")
                txn.drop("größe 木")
                with pytest.raises(KeyNotFoundError):
                    txn.drop("größe 木")
                assert txn.trees() == ["empty", "people"]
            assert old.trees() == ["empty", "größe 木", "users"]
            assert len(old.tree("users")) == 500
            assert old.tree("users") is old.tree("users")
            with pytest.raises(TypeError, match="creates nothing"):
                old.tree("new", create=True)
            with pytest.raises(KeyNotFoundError):
                old.tree("people")
        with db.read() as new:
            assert new.trees() == ["empty", "people"]
            assert dict(new.tree("people")) == dict(numbered(500))
            assert len(new.tree("empty")) == 0
            assert dict(new) == {b"main": b"tree"}


def test_an_aborted_transaction_leaves_the_catalog_as_it_was():
    with database() as db:
        with db.write() as txn:
            txn.tree("a", create=True).update(numbered(100))
        txn = db.write()
        txn.rename("a", "b")
        txn.tree("b").clear()
        txn.tree("c", create=True)[b"k"] = b"v"
        txn.drop("b")
        txn.abort()
        with db.read() as snapshot:
            assert snapshot.trees() == ["a"]
            assert len(snapshot.tree("a")) == 100


def test_a_dropped_tree_refuses_and_its_name_is_free():
    with database() as db, db.write() as txn:
        tree = txn.tree("a", create=True)
        tree.update(numbered(100))
        txn.drop("a")
        with pytest.raises(ClosedError):
            tree[b"k"] = b"v"
        with pytest.raises(ClosedError):
            len(tree)
        again = txn.tree("a", create=True)
        assert len(again) == 0
        again[b"k"] = b"v"
        txn.rename("a", "b")
        txn.tree("a", create=True)[b"k"] = b"w"
        txn.rename("b", "c")
        assert dict(txn.tree("c")) == {b"k": b"v"}
        assert dict(txn.tree("a")) == {b"k": b"w"}


def test_drop_frees_the_pages():
    with database() as db:
        with db.write() as txn:
            txn.tree("large", create=True).update([*numbered(3000), (b"l", bytes(100_000))])
        used = db.stats().used_pages
        assert used > 40
        with db.write() as txn:
            txn.drop("large")
        assert db.stats().used_pages <= 1


def test_many_trees():
    with database() as db:
        names = [f"tree {number:04}" for number in range(300)]
        with db.write() as txn:
            for number, name in enumerate(names):
                txn.tree(name, create=True)[b"number"] = b"%d" % number
        with db.write() as txn:
            for name in names[::2]:
                txn.drop(name)
            for name in names[1::4]:
                txn.rename(name, "x" + name)
        left = sorted(names[3::4] + ["x" + name for name in names[1::4]])
        with db.read() as snapshot:
            assert snapshot.trees() == left
            assert all(snapshot.tree(name)[b"number"] == b"%d" % int(name[-4:]) for name in left)


# ---------------------------------------------------------------- damage

META = Meta(4096, bytes(16), 9, 9, 100, 0, fmt.EMPTY_TREE, fmt.EMPTY_TREE, fmt.EMPTY_TREE, b"")


def catalog_of(value):
    kernel = Kernel()
    kernel.put([(b"users", value)])
    return kernel.reader()


def test_a_descriptor_is_found():
    descriptor = fmt.Descriptor(fmt.Reference(7, 3, 10, 5), 2, 1, 2, 0)
    catalog = catalog_of(descriptor.pack())
    assert find_tree(catalog, "users", META) == descriptor
    assert find_tree(catalog, "user", META) is None
    with pytest.raises(CorruptionError):
        find_tree(catalog, "users", META._replace(page_count=7))


@pytest.mark.parametrize("value", [b"", bytes(63), bytes(65), bytes(5000)])
def test_an_entry_that_is_no_descriptor(value):
    with pytest.raises(CorruptionError, match="no tree descriptor"):
        find_tree(catalog_of(value), "users", META)


@pytest.mark.parametrize(
    "descriptor",
    [
        fmt.Descriptor(fmt.Reference(100, 3, 10, 5), 1, 0, 1, 0),
        fmt.Descriptor(fmt.Reference(1, 3, 10, 5), 1, 0, 1, 0),
        fmt.Descriptor(fmt.Reference(7, 10, 10, 5), 1, 0, 1, 0),
        fmt.Descriptor(fmt.Reference(7, 3, 10, 5), 0, 0, 1, 0),
        fmt.Descriptor(fmt.Reference(7, 3, 10, 5), 49, 0, 1, 0),
        fmt.Descriptor(fmt.Reference(0, 0, 0, 0), 1, 0, 1, 0),
        fmt.Descriptor(fmt.Reference(7, 3, 10, 5), 1, 0, 1, 100),
    ],
)
def test_a_descriptor_that_makes_no_sense(descriptor):
    with pytest.raises(CorruptionError, match="users"):
        find_tree(catalog_of(descriptor.pack()), "users", META)


def test_names_that_are_none():
    assert tree_names([b"a", "größe".encode()]) == ["a", "größe"]
    with pytest.raises(CorruptionError, match="UTF-8"):
        tree_names([b"a", b"\xff"])
    with pytest.raises(CorruptionError, match="no name"):
        tree_names([b"", b"a"])


def test_a_catalog_of_nonsense_in_a_file():
    file = handmade.Handmade(4096)
    good = file.tree([(b"k", b"v")], 1)
    file.commit(0)
    file.commit(1, durable=1, named={"good": good, "short": good})
    leaf = next(n for n in file.pages(handmade.LEAF) if b"short" in file.page(n))
    at = file.page(leaf).find(b"short") - 2
    file.patch(leaf, at, (30).to_bytes(2, "little"))
    with open_on(MemoryDisk({"/db": bytes(file.data)}), "/db") as db:
        with db.read() as snapshot:
            assert snapshot.tree("good")[b"k"] == b"v"
            with pytest.raises(CorruptionError):
                snapshot.tree("short")
        with db.write() as txn:
            with pytest.raises(CorruptionError):
                txn.tree("short", create=True)
            with pytest.raises(CorruptionError):
                txn.drop("short")
            txn.abort()
        for call in (db.stats, db.info):
            with pytest.raises(Error):
                call()
        assert db.check() != []
