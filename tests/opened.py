"""What the tests with several processes share: the lines that open a file in a child, and a look at it afterwards."""

from __future__ import annotations

import cowdb

OPEN = "db = cowdb.open(path)"
OPEN_WITH_RECORD_LOCKS = """
from cowdb.bytelocks import ByteLocks
ByteLocks.available = staticmethod(lambda: False)
db = cowdb.open(path)
"""


def checked(path):
    """Open the file afresh, check it, write to it, check it again: life after death."""
    with cowdb.open(path, create=False) as db:
        assert db.check() == []
        with db.read() as snapshot:
            content = dict(snapshot.items())
            assert len(content) == len(snapshot)
        for number in range(3):
            db[b"after"] = b"%d" % number
        assert db.check() == []
    return content
