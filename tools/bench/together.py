"""The same work by many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def in_threads(count: int, work: Callable[[int], object]) -> float:
    """Seconds until `count` threads have done `work` each, which is given their number; raises what one of them did."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - of a thread, told by the one that joins it
            failures.append(error)

    workers = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    return seconds
