"""Calls of the system that every small transaction makes, without an object for each step of them.

Pages that were sealed are written by one call from Python, however many runs they are.  The interpreter's lock is kept
meanwhile, as long as such calls are quick (see kernel.h): with many threads that is what counts, since each time that
it is let go somebody else takes it, and has to be waited for.

With more pages than a small transaction has, it is let go for each 256 KiB of them.

What is not usual is left to the plain form, which asks the storage: a disk that is not the system's own, values of
many pages, a test that watches each call.
"""

from __future__ import annotations

import errno
import os

from native.frames import *
from native.memory import *

from cowdb import sealed as plain_sealed
from cowdb import storage as plain_storage

SOON = cython.declare(cython.Py_ssize_t, plain_storage.SOON)
WRITE_SOME = cython.declare(object, plain_storage._write_some)


@cython.cfunc
@cython.exceptval(-2, check=False)
def descriptor_of(storage) -> cython.int:
    """The descriptor of a storage that is written without asking it; -1 if there is none."""
    if (
        not COWDB_SYSTEM_CALLS
        or type(storage) is not plain_storage.FileStorage
        or storage.read_only
        or plain_storage._write_some is not WRITE_SOME
    ):
        return -1
    return storage._fd


@cython.cfunc
@cython.exceptval(-1, check=False)
def still_leads(storage, fd: cython.int) -> cython.int:
    """Raise if a signal's handler or a thread has closed the storage: the number may be another file's by now."""
    if storage._fd != fd:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), storage.path)
    return 0


@cython.cfunc
@cython.exceptval(-1, check=False)
def write_all(
    storage,
    fd: cython.int,
    pages: cython.pointer[SealedPage],
    count: cython.Py_ssize_t,
    size: cython.size_t,
    quick: cython.bint,
) -> cython.int:
    """Write up to SEALED_LIMIT pages of `size` bytes, neighbours together, and answer signals in between.

    `quick`: keep the interpreter's lock, as long as such calls are.
    """
    done: cython.size_t = 0
    error: cython.int
    while True:
        if quick:
            error = write_quickly(fd, pages, count, size, cython.address(done))
        else:
            with cython.nogil:
                error = write_sealed_pages(fd, pages, count, size, cython.address(done))
        if error == 0:
            return 0
        if error < 0:
            raise OSError(IO_ERROR, "a write made no progress", storage.path)
        if error != INTERRUPTED_CALL:
            raise OSError(error, os.strerror(error))
        PyErr_CheckSignals()
        still_leads(storage, fd)


@cython.cfunc
@cython.exceptval(-1, check=False)
def gathered(sealed, pages: cython.pointer[SealedPage], size: cython.Py_ssize_t) -> cython.bint:
    """Put down where the sealed pages lie; False if there is anything else among them."""
    numbers: list = sealed.numbers
    parts: list = sealed.parts
    index: cython.Py_ssize_t
    for index in range(PyList_GET_SIZE(parts)):
        part = parts[index]
        if type(part) is not Frame or cython.cast(Frame, part).frames.size != size:
            return False
        pages[index].number = numbers[index]
        pages[index].at = cython.cast(Frame, part).at
    return True


def write_sealed(storage, sealed, size: cython.Py_ssize_t, *, flushed: cython.bint):
    """Write sealed pages of `size` bytes, neighbours in one call; how many that was. O(n log n)."""
    parts: list = sealed.parts
    count: cython.Py_ssize_t = PyList_GET_SIZE(parts)
    few: SealedPage[SEALED_LIMIT]
    many: cython.pointer[SealedPage]
    room: Scratch
    fd: cython.int = descriptor_of(storage)
    limit: cython.Py_ssize_t = min(SEALED_LIMIT, plain_storage.WRITE_LIMIT // size)
    place: cython.Py_ssize_t
    asked: cython.Py_ssize_t = 0  # of the pages: the disk was asked to begin with those before it
    if fd < 0 or not count or not limit:
        return plain_sealed.write_sealed(storage, sealed, size, flushed=flushed)
    if count <= limit:
        if not gathered(sealed, few, size):
            return plain_sealed.write_sealed(storage, sealed, size, flushed=flushed)
        write_all(storage, fd, few, count, size, True)
        return count
    room = Scratch(count * cython.sizeof(SealedPage))
    many = cython.cast(cython.pointer[SealedPage], room.at)
    if not gathered(sealed, many, size):
        return plain_sealed.write_sealed(storage, sealed, size, flushed=flushed)
    sort_pages(many, count)
    for place in range(0, count, limit):
        still_leads(storage, fd)
        write_all(storage, fd, many + place, min(limit, count - place), size, False)
        if flushed and (place + limit - asked) * size >= SOON:
            ask_for(storage, fd, many, asked, min(place + limit, count), size)
            asked = place + limit
        PyErr_CheckSignals()
    return count


@cython.cfunc
@cython.exceptval(-1, check=False)
def ask_for(
    storage,
    fd: cython.int,
    pages: cython.pointer[SealedPage],
    start: cython.Py_ssize_t,
    stop: cython.Py_ssize_t,
    size: cython.size_t,
) -> cython.int:
    """Have the disk begin with the pages from `start` to `stop`, which were written in the order of their numbers."""
    error: cython.int
    with cython.nogil:
        error = start_writing(fd, pages[start].number * size, (pages[stop - 1].number + 1) * size)
    return begun(storage, IO_ERROR if error else 0)  # also lack of room: what is lost may be more than was just written


@cython.cfunc
@cython.exceptval(-1, check=False)
def begun(storage, error: cython.int) -> cython.int:
    """Raise what the system could not begin with."""
    if error:
        raise OSError(error, os.strerror(error), storage.path)
    return 0


def write_page(storage, number: u64, raw: bytes) -> None:
    """Write one page. O(page size)."""
    page: SealedPage
    fd: cython.int = descriptor_of(storage)
    size: cython.Py_ssize_t = PyBytes_GET_SIZE(raw)
    if fd < 0 or not size:
        plain_sealed.write_page(storage, number, raw)
        return
    page.number = number
    page.at = bytes_at(raw)
    write_all(storage, fd, cython.address(page), 1, size, True)


def leads_to(path: str, identity: tuple) -> bool:
    """Whether `path` leads to the file with that device and inode now. One system call, which asks for no times."""
    if not COWDB_SYSTEM_CALLS:
        return plain_storage.leads_to(path, identity)
    raw: bytes = PyUnicode_EncodeFSDefault(path)
    at: cython.p_char = PyBytes_AS_STRING(raw)
    if strlen(at) != PyBytes_GET_SIZE(raw):  # a null byte, which Python refuses
        return plain_storage.leads_to(path, identity)
    device: u64 = 0
    inode: u64 = 0
    error: cython.int
    while True:
        error = look_quickly(at, cython.address(device), cython.address(inode))
        if error != INTERRUPTED_CALL:
            break
        PyErr_CheckSignals()
    if error == 0:
        wanted_device: u64 = identity[0]
        wanted_inode: u64 = identity[1]
        return device == wanted_device and inode == wanted_inode
    if error in (NO_ENTRY, NO_DIRECTORY):
        return False
    raise OSError(error, os.strerror(error), path)


def begin_writing(storage, start: u64, *, little: cython.bint):
    """Ask the disk to begin with what was written from byte `start` on. One system call, which does not wait for it.

    `little`: some pages, so that it is quick.
    """
    fd: cython.int = descriptor_of(storage)
    error: cython.int
    if fd < 0:
        plain_storage.begin_writing(storage, start, little=little)
        return
    if little:
        error = start_quickly(fd, start)
    else:
        with cython.nogil:
            error = start_writing(fd, start, 0)
    begun(storage, error)


def size_of(storage):
    """The size of the file in bytes. One system call, which looks at what is in memory and never waits."""
    size: cython.longlong
    if type(storage) is plain_storage.FileStorage:
        size = file_size(storage._fd)
        if size >= 0:
            return size
    return storage.size()
