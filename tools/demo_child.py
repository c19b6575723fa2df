"""The victim of the demo's last act: commits a stream of transactions until somebody kills it.

Each transaction puts five records into a tree and the transaction's number into the main tree, so that half of one
would show. Its number goes to standard output only after the commit has returned: that is the acknowledgement.
"""

from __future__ import annotations

import itertools
import os
import sys

import cowdb


def main(path: str) -> None:
    """Commit for ever, going on where the last victim stopped."""
    with cowdb.open(path) as db:
        last = int(db.get(b"last", b"0"))
        for number in itertools.count(last + 1):
            with db.write() as txn:
                stream = txn.tree("stream", create=True)
                for part in range(5):
                    stream[b"%012d/%d" % (number, part)] = os.urandom(200)
                txn[b"last"] = b"%d" % number
            # One write call, so that the line is in the pipe before anything else happens.
            os.write(sys.stdout.fileno(), b"%d\n" % number)


if __name__ == "__main__":
    main(sys.argv[1])
