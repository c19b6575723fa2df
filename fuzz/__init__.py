"""The harness that tries to make cowdb lose, mix up or damage data; see `fuzz/README.md`.

It lies beside the package and is not installed with it: nothing in cowdb knows of it.
"""
