"""``python -m cowdb``: the same as the command ``cowdb``."""

from __future__ import annotations

import sys

from cowdb.cli import main

if __name__ == "__main__":
    sys.exit(main())
