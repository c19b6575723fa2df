"""CRC-32C (Castagnoli), the checksum of every page.

The `crc32c` package computes it with the processor's own instruction where
there is one.  It finds all single bit flips and all bursts up to 32 bits, and
misses other damage once in 2**32 times.  It is no seal against a forger.
"""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["crc32c"]
