"""The optional part of the build: the compiled page kernel, `cowdb._kernel`, from the parts in `native/`.

`pyproject.toml` says everything else.  The parts are joined into one module, so that the C compiler sees
across them, Cython makes C of it, and a compiler that is missing or fails leaves the plain kernel, which is all that
cowdb needs.  `COWDB_PURE=1` in the environment leaves it out on purpose.  docs/kernel.md tells more.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
PARTS = (
    "memory",
    "frames",
    "space",
    "page",
    "cells",
    "tree",
    "path",
    "changes",
    "writer",
    "sealing",
    "items",
    "freelist",
    "metapage",
    "files",
    "draft",
    "writing",
    "commit",
    "sharing",
    "locks",
    "group",
    "gate",
    "reading",
    "handle",
)
BUILD = Path("build", "native", "cowdb")


def joined(sources: Path) -> str:
    """The parts as one module: their imports of each other are left out, the rest stands once.

    Each part says which of the others it needs, for its reader; the order of PARTS is what counts.
    """
    text = ["# cython: language_level=3, boundscheck=True, wraparound=True, initializedcheck=False, cdivision=True"]
    text += ["# cython: binding=False, infer_types=True, freethreading_compatible=True, annotation_typing=True"]
    text += ["# cython: unraisable_tracebacks=False"]  # else a finalizer's error goes to `sys.excepthook` as well
    text += ["# Joined by setup.py from the parts in native/; do not edit.", "from __future__ import annotations"]
    for part in PARTS:
        source = (sources / f"{part}.py").read_text(encoding="utf-8")
        source = re.sub(r"^from (native\.\w+|__future__) import .*\n", "", source, flags=re.MULTILINE)
        text.append(f"# ---- native/{part}.py\n{source}")
    return "\n".join([*text, f"STAMP = {stamp(sources.parent)}", ""])


def stamp(root: Path) -> int:
    """What tells one state of the sources from another; `cowdb.kernel` computes the same."""
    found = 0
    for folder, pattern in (("native", "*.*"), ("cowdb", "format.py")):
        for path in sorted((root / folder).glob(pattern)):
            if path.suffix in {".py", ".h", ".pxd"}:
                found = zlib.crc32(path.read_bytes(), found)
    return found


def extensions() -> list[Extension]:
    """The kernel, if it is wanted and Cython is there."""
    if os.environ.get("COWDB_PURE") == "1":
        return []
    try:
        from Cython.Build import cythonize  # noqa: PLC0415 - it may be missing
    except ImportError:
        return []
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "__init__.py").write_text("", encoding="utf-8")  # so that Cython takes the declarations for this module's
    (BUILD / "_kernel.py").write_text(joined(HERE / "native"), encoding="utf-8")
    for name in ("_kernel.pxd", "kernel.h"):
        (BUILD / name).write_bytes((HERE / "native" / name).read_bytes())
    kernel = Extension(
        "cowdb._kernel",
        [str(BUILD / "_kernel.py")],
        include_dirs=[str(BUILD)],
        extra_compile_args=[] if sys.platform == "win32" else ["-O2"],
    )
    made: list[Extension] = cythonize([kernel], quiet=True, include_path=[str(BUILD.parent)])
    for extension in made:
        extension.optional = True  # a failure to compile is a warning; Cython forgets this if it is said before
    return made


if __name__ == "__main__":
    setup(ext_modules=extensions())
