"""A place in a tree: where seeks lead, and steps over the edges of leaves and branches."""

from __future__ import annotations

import pytest
from kernel import Kernel, far_items, numbered
from sortedcontainers import SortedDict

from cowdb.errors import CorruptionError
from cowdb.kernel import Path

TREES = {
    "one leaf": numbered(10),
    "two levels": numbered(400),
    "four levels": far_items(120),
}


def make(name, kind):
    kernel = Kernel()
    if kind == "dirty":
        writer = kernel.writer()
        writer.update(TREES[name])
        return writer
    kernel.put(TREES[name])
    return kernel.reader()


def here(path):
    return path.leaf.key(path.index)


@pytest.fixture(params=TREES)
def name(request):
    return request.param


@pytest.fixture(params=["clean", "dirty"])
def tree(request, name):
    return make(name, request.param)


def test_forward_and_backward_over_everything(tree, name):
    keys = [key for key, _ in TREES[name]]
    path = Path(tree)
    assert path.edge(last=False)
    found = [here(path)]
    while path.forward():
        found.append(here(path))
    assert found == keys
    assert path.edge(last=True)
    found = [here(path)]
    while path.backward():
        found.append(here(path))
    assert found == keys[::-1]


def test_leaf_by_leaf(tree, name):
    keys = [key for key, _ in TREES[name]]
    path = Path(tree)
    more = path.edge(last=False)
    found = []
    while more:
        found += [path.leaf.key(at) for at in range(path.leaf.cells)]
        more = path.next_leaf()
    assert found == keys
    assert path.pages == path.indexes == [], "a spent path leads nowhere"
    more = path.edge(last=True)
    found = []
    while more:
        assert path.index == path.leaf.cells - 1
        found[:0] = [path.leaf.key(at) for at in range(path.leaf.cells)]
        more = path.previous_leaf()
    assert found == keys
    assert path.pages == path.indexes == []


def test_seeks_lead_beside_or_to_every_key(tree, name):
    model = SortedDict(TREES[name])
    keys = list(model)
    path = Path(tree)
    for probe in [*keys, *(key + b"\0" for key in keys), *(key[:-1] for key in keys), b"", b"\xff" * 20]:
        at = model.bisect_left(probe)
        assert path.seek(probe) == (at < len(keys))
        if at < len(keys):
            assert here(path) == keys[at]
        for inclusive in (False, True):
            before = (model.bisect_right(probe) if inclusive else at) - 1
            assert path.seek_before(probe, inclusive=inclusive) == (before >= 0)
            if before >= 0:
                assert here(path) == keys[before]


def test_select_and_then_walk(tree, name):
    keys = [key for key, _ in TREES[name]]
    path = Path(tree)
    for rank in range(0, len(keys), 7):
        path.select(rank)
        assert here(path) == keys[rank]
        if rank:
            assert path.backward()
            assert here(path) == keys[rank - 1]
            assert path.forward()
        assert path.forward() == (rank + 1 < len(keys))


@pytest.mark.parametrize("kind", ["clean", "dirty"])
def test_an_empty_tree_has_no_places(kind):
    kernel = Kernel()
    path = Path(kernel.writer() if kind == "dirty" else kernel.reader())
    assert not path.edge(last=False)
    assert not path.edge(last=True)
    assert not path.seek(b"")
    assert not path.seek_before(b"\xff", inclusive=True)


def test_a_leaf_that_has_less_than_was_counted():
    kernel = Kernel()
    kernel.put(numbered(10))
    kernel.descriptor = kernel.descriptor._replace(root=kernel.descriptor.root._replace(count=11))
    with pytest.raises(CorruptionError, match="counts more"):
        Path(kernel.reader()).select(10)
