/* What Cython cannot say: loads and stores of unaligned little-endian integers, and CRC-32C.
 *
 * memcpy of a fixed size is one instruction wherever the processor can do it, and defined everywhere.
 * CRC-32C is computed with the processor's instruction where the compiler can emit it and the processor
 * has it, asked once at import; else with eight tables of 256 entries, eight bytes a step.
 */
#ifndef COWDB_KERNEL_H
#define COWDB_KERNEL_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline uint64_t get16(const unsigned char *at) { uint16_t v; memcpy(&v, at, 2); return v; }
static inline uint64_t get32(const unsigned char *at) { uint32_t v; memcpy(&v, at, 4); return v; }
static inline uint64_t get64(const unsigned char *at) { uint64_t v; memcpy(&v, at, 8); return v; }
static inline uint64_t get48(const unsigned char *at) { return get32(at) | get16(at + 4) << 32; }
static inline void put16(unsigned char *at, uint64_t v) { uint16_t w = (uint16_t)v; memcpy(at, &w, 2); }
static inline void put32(unsigned char *at, uint64_t v) { uint32_t w = (uint32_t)v; memcpy(at, &w, 4); }
static inline void put64(unsigned char *at, uint64_t v) { memcpy(at, &v, 8); }
static inline void put48(unsigned char *at, uint64_t v) { put32(at, v); put16(at + 4, v >> 32); }

/* The head of a key: its first four bytes, big-endian, zero-padded. */
static inline uint64_t head_of(const unsigned char *key, ptrdiff_t length)
{
    if (length > 3)
        return (uint64_t)key[0] << 24 | (uint64_t)key[1] << 16 | (uint64_t)key[2] << 8 | key[3];
    uint64_t head = 0;
    for (ptrdiff_t i = 0; i < length; i++)
        head |= (uint64_t)key[i] << (24 - 8 * i);
    return head;
}

/* Free pages that lie side by side, and their order. */
typedef struct { uint64_t start, length; } FreeRun;
typedef struct { uint64_t start, length, birth, freed; } HeldRun;

static int run_order(const void *a, const void *b)
{
    uint64_t left = ((const FreeRun *)a)->start, right = ((const FreeRun *)b)->start;
    if (left == right) {
        left = ((const FreeRun *)a)->length;
        right = ((const FreeRun *)b)->length;
    }
    return (left > right) - (left < right);
}

static inline void sort_runs(FreeRun *at, size_t count)
{
    if (count > 1)
        qsort(at, count, sizeof *at, run_order);
}

/* Words that other threads and processes look at. */
#if defined(__GNUC__)
static inline uint64_t load_acquire(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void store_release(uint64_t *at, uint64_t v) { __atomic_store_n(at, v, __ATOMIC_RELEASE); }
static inline void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#else
#include <stdatomic.h>
static inline uint64_t load_acquire(const uint64_t *at)
{
    uint64_t v = *(volatile const uint64_t *)at;
    atomic_thread_fence(memory_order_acquire);
    return v;
}
static inline void store_release(uint64_t *at, uint64_t v)
{
    atomic_thread_fence(memory_order_release);
    *(volatile uint64_t *)at = v;
}
static inline void fence(void) { atomic_thread_fence(memory_order_seq_cst); }
#endif

static inline uint64_t big_endian(uint64_t v)
{
#if defined(__GNUC__)
    return __builtin_bswap64(v);
#else
    v = (v & 0x00FF00FF00FF00FFu) << 8 | (v >> 8 & 0x00FF00FF00FF00FFu);
    v = (v & 0x0000FFFF0000FFFFu) << 16 | (v >> 16 & 0x0000FFFF0000FFFFu);
    return v << 32 | v >> 32;
#endif
}

/* Negative, zero or positive, as bytes are ordered. Keys are short: no call, eight bytes a step. */
static inline int order_of(const unsigned char *a, ptrdiff_t a_length, const unsigned char *b, ptrdiff_t b_length)
{
    ptrdiff_t length = a_length < b_length ? a_length : b_length;
    if (length > 64) {
        int order = memcmp(a, b, (size_t)length);
        if (order)
            return order;
        length = 0;
    }
    for (; length >= 8; a += 8, b += 8, length -= 8) {
        uint64_t x = get64(a), y = get64(b);
        if (x != y)
            return big_endian(x) < big_endian(y) ? -1 : 1;
    }
    for (; length; a++, b++, length--)
        if (*a != *b)
            return *a < *b ? -1 : 1;
    return (a_length > b_length) - (a_length < b_length);
}

#if defined(__GNUC__)
#define COWDB_PREFETCH(at) __builtin_prefetch(at)
#else
#define COWDB_PREFETCH(at) ((void)0)
#endif
static inline void prefetch(const unsigned char *at) { COWDB_PREFETCH(at); (void)at; }

/* Which of `left` > 0 slots from `first` on is the last one, or the only one, that may be less than `wanted`: no
 * branch that depends on what is compared, for those would be mispredicted every other time. */
static inline int narrow(const unsigned char *slots, int first, int left, uint64_t wanted)
{
    while (left > 1) {
        int half = left >> 1;
        first += -(get64(slots + 8 * (ptrdiff_t)(first + half - 1)) < wanted) & half;
        left -= half;
    }
    return first;
}

/* Ask for `length` bytes, so that they come side by side and not one after the other. */
static inline void prefetch_all(const unsigned char *at, ptrdiff_t length)
{
    for (ptrdiff_t i = 0; i < length; i += 64)
        prefetch(at + i);
}

/* Ask for what a look into the leaf at `at` will read, before its header can say how much that is: header and slots,
 * and a place among the cells, for the address of that half of the page has to be translated too. It may be anywhere. */
static inline void prefetch_leaf(const unsigned char *at, ptrdiff_t size)
{
    for (ptrdiff_t i = 0; i < 512; i += 64)
        prefetch(at + i);
    prefetch(at + size - 2048);
}

/* ---------------------------------------------------------------- Python's objects */

#ifdef Py_GIL_DISABLED
#define COWDB_FREE_THREADED 1 /* the interpreter may have no lock of its own */
#else
#define COWDB_FREE_THREADED 0
#endif

/* A new object of a class whose __new__ is that of its compiled base; `nothing` is an empty tuple. */
static inline PyObject *new_of(PyObject *kind, PyObject *nothing)
{
    return ((PyTypeObject *)kind)->tp_new((PyTypeObject *)kind, nothing, NULL);
}

/* A named tuple of a class that adds no `__new__` to that of tuples, or none that matters; see its users. */
static inline PyObject *named_tuple(PyObject *kind, PyObject *fields)
{
    Py_ssize_t count = PyTuple_GET_SIZE(fields);
    PyObject *made = ((PyTypeObject *)kind)->tp_alloc((PyTypeObject *)kind, count);
    if (!made)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(made, i, Py_NewRef(PyTuple_GET_ITEM(fields, i)));
#if PY_VERSION_HEX >= 0x030E0000 && !defined(Py_LIMITED_API)
    ((PyTupleObject *)made)->ob_hash = -1; /* not computed yet */
#endif
    return made;
}

/* The place of the next thing in a list, from one place on, that is not None; -1 if there is none. */
static inline Py_ssize_t next_filled(PyObject *list, Py_ssize_t place)
{
    Py_ssize_t end = PyList_GET_SIZE(list);
    for (; place < end; place++)
        if (PyList_GET_ITEM(list, place) != Py_None)
            return place;
    return -1;
}

/* 0: it is dying, and its finalizer has not been called yet. */
static inline Py_ssize_t references_of(void *who) { return Py_REFCNT((PyObject *)who); }

/* ---------------------------------------------------------------- memory for dirty pages */

#ifdef Py_GIL_DISABLED
typedef PyMutex Mutex;
static inline void lock_mutex(Mutex *mutex) { PyMutex_Lock(mutex); }
static inline void unlock_mutex(Mutex *mutex) { PyMutex_Unlock(mutex); }
#else
typedef struct { char nothing; } Mutex; /* the interpreter's lock is held */
static inline void lock_mutex(Mutex *mutex) { (void)mutex; }
static inline void unlock_mutex(Mutex *mutex) { (void)mutex; }
#endif

#if defined(__linux__)
#include <sys/mman.h>
#if defined(MADV_HUGEPAGE) && defined(MADV_FREE)
#define COWDB_LARGE_PAGES 1
#endif
#endif

typedef struct { unsigned char *at; size_t length; int mapped; } Block;

/* New memory; if it is `large` bytes or more, a multiple of that, it begins where a large page can. 0: there is none. */
static int new_block(Block *block, size_t length, size_t large)
{
    block->length = length;
    block->mapped = 0;
#ifdef COWDB_LARGE_PAGES
    if (length >= large) {
        unsigned char *at = mmap(NULL, length + large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            return 0;
        size_t before = (large - (uintptr_t)at % large) % large;
        if (before)
            munmap(at, before);
        block->at = at + before;
        munmap(block->at + length, large - before);
        block->mapped = 1;
        madvise(block->at, length, MADV_HUGEPAGE); /* where there are none, 4 KiB a time will do */
        return 1;
    }
#endif
    (void)large;
    block->at = PyMem_RawMalloc(length);
    return block->at != NULL;
}

static void free_block(Block *block)
{
#ifdef COWDB_LARGE_PAGES
    if (block->mapped) {
        munmap(block->at, block->length);
        return;
    }
#endif
    PyMem_RawFree(block->at);
}

/* Nobody needs what stands in the block now: the system may take its memory, until somebody writes there again. */
static void offer_block(Block *block)
{
#ifdef COWDB_LARGE_PAGES
    if (block->mapped)
        madvise(block->at, block->length, MADV_FREE);
#else
    (void)block;
#endif
}

/* ---------------------------------------------------------------- calls of the system */

#include <errno.h>
#include <time.h>
#define COWDB_GATHERED 32768 /* bytes of pages in one call: see GATHERED of storage.py */
#define SEALED_LIMIT 64 /* pages that are written at a time, and with the interpreter's lock kept if there are no more */

/* A small write into the system's cache takes a few microseconds. To let the interpreter's lock go and get it back
 * takes longer, when other threads want it; worse, they then meet a thread that is stopped in the middle of its commit.
 * So the lock is kept for such a call, as long as these calls are quick: after one that was not, because the system is
 * short of memory or the disk too slow for what is written, the lock is let go for the next ones. */
#define COWDB_QUICK 2000000 /* nanoseconds; Python lets another thread wait for up to 5,000,000 */
#define COWDB_CAUTION 50    /* quick calls until the lock is kept again */
#ifdef Py_GIL_DISABLED
#define COWDB_QUICKLY(error, call) \
    do { Py_BEGIN_ALLOW_THREADS error = call; Py_END_ALLOW_THREADS } while (0)
#else
static int cowdb_caution = 0; /* looked at with the lock held */

static uint64_t clock_now(void)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void call_took(uint64_t time)
{
    if (time > COWDB_QUICK) /* it seems so, too, if somebody has set the clock back */
        cowdb_caution = COWDB_CAUTION;
    else if (cowdb_caution)
        cowdb_caution--;
}

#define COWDB_QUICKLY(error, call) \
    do { \
        uint64_t took, began = clock_now(); \
        if (!cowdb_caution) { \
            error = call; \
            took = clock_now() - began; \
        } else { \
            Py_BEGIN_ALLOW_THREADS \
            error = call; \
            took = clock_now() - began; \
            Py_END_ALLOW_THREADS \
        } \
        call_took(took); \
    } while (0)
#endif

/* A page that has its number, and where it lies in memory. */
typedef struct { uint64_t number; unsigned char *at; } SealedPage;

static int page_order(const void *a, const void *b)
{
    uint64_t left = ((const SealedPage *)a)->number, right = ((const SealedPage *)b)->number;
    return (left > right) - (left < right);
}

/* Any number of pages, by their numbers. */
static void sort_pages(SealedPage *at, size_t count) { qsort(at, count, sizeof *at, page_order); }

#if defined(__linux__)
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <fcntl.h>
#include <unistd.h>
#define COWDB_SYSTEM_CALLS 1
static long long file_size(int fd) { return (long long)lseek(fd, 0, SEEK_END); }

/* Write SEALED_LIMIT pages at most, from byte `*done` of all their bytes on, by their numbers, neighbours in one call.
 * 0, or what errno says; EINTR: a signal is to be answered, then go on; -1: it made no progress. */
static int write_sealed_pages(int fd, SealedPage *pages, ptrdiff_t count, size_t size, size_t *done)
{
    if (!*done)
        for (ptrdiff_t i = 1; i < count; i++) { /* they are few, and mostly in order */
            SealedPage page = pages[i];
            ptrdiff_t place = i;
            for (; place && pages[place - 1].number > page.number; place--)
                pages[place] = pages[place - 1];
            pages[place] = page;
        }
    while (*done < (size_t)count * size) {
        struct iovec parts[SEALED_LIMIT];
        ptrdiff_t first = (ptrdiff_t)(*done / size);
        size_t skip = *done % size;
        int many = 0;
        do {
            parts[many].iov_base = pages[first + many].at + (many ? 0 : skip);
            parts[many].iov_len = size - (many ? 0 : skip);
            many++;
        } while ((size_t)(many + 1) * size <= COWDB_GATHERED && first + many < count &&
                 pages[first + many].number == pages[first].number + (uint64_t)many);
        ssize_t written = pwritev(fd, parts, many, (off_t)(pages[first].number * size + skip));
        if (written < 0)
            return errno;
        if (!written)
            return -1; /* it made no progress */
        *done += (size_t)written;
    }
    return 0;
}

/* Have the system begin to bring bytes of a file to the disk. `to` 0: up to the end. 0, or what errno says: what the
 * disk fails at later is told by the flush, but not what the system could not even begin with. See `begin_writing` of
 * storage.py, and HARMLESS there. */
static int start_writing(int fd, uint64_t from, uint64_t to)
{
#if defined(SYNC_FILE_RANGE_WRITE)
    if (sync_file_range(fd, (off_t)from, to ? (off_t)(to - from) : 0, SYNC_FILE_RANGE_WRITE))
        switch (errno) {
        case EINVAL: case ENOSYS: case EOPNOTSUPP: case ENOTTY: case EPERM: case ESPIPE:
        case EBADF: case EINTR: case EAGAIN: case ENOMEM:
            return 0;
        default:
            return errno;
        }
#else
    (void)fd, (void)from, (void)to;
#endif
    return 0;
}

/* Which file a path leads to. 0, or what errno says. Who does not ask for a file's times does not make the next write
 * and flush bring them to the disk: see `leads_to` of storage.py. */
static int device_and_inode(const char *path, uint64_t *device, uint64_t *inode)
{
#if defined(__linux__) && defined(STATX_INO)
    struct statx seen;
    if (!statx(AT_FDCWD, path, 0, STATX_INO, &seen)) { /* what hinders it is told by `stat` */
        *device = makedev(seen.stx_dev_major, seen.stx_dev_minor);
        *inode = seen.stx_ino;
        return 0;
    }
#endif
    struct stat found;
    if (stat(path, &found))
        return errno;
    *device = found.st_dev;
    *inode = found.st_ino;
    return 0;
}

#if defined(F_OFD_SETLK)
#define COWDB_BYTE_LOCKS 1

/* Take a lock on bytes of an open file description, if that is possible at once, or let it go. 0, or errno. */
static int set_byte_lock(int fd, int release, long long start, long long length)
{
    struct flock lock = {0}; /* l_pid has to be 0 */
    lock.l_type = release ? F_UNLCK : F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)start;
    lock.l_len = (off_t)length;
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? errno : 0;
}
#endif

static uint64_t process_id(void) { return (uint64_t)getpid(); }
#else
#define COWDB_SYSTEM_CALLS 0
static int start_writing(int fd, uint64_t from, uint64_t to) { (void)fd, (void)from, (void)to; return 0; }
static long long file_size(int fd) { (void)fd; return -1; }
static uint64_t process_id(void) { return 0; }
static int write_sealed_pages(int fd, SealedPage *pages, ptrdiff_t count, size_t size, size_t *done)
{
    (void)fd, (void)pages, (void)count, (void)size, (void)done;
    return ENOSYS;
}
static int device_and_inode(const char *path, uint64_t *device, uint64_t *inode)
{
    (void)path, (void)device, (void)inode;
    return ENOSYS;
}
#endif

#ifndef COWDB_BYTE_LOCKS
#define COWDB_BYTE_LOCKS 0
static int set_byte_lock(int fd, int release, long long start, long long length)
{
    (void)fd, (void)release, (void)start, (void)length;
    return ENOSYS;
}
#endif

/* The same three, with the interpreter's lock kept or let go. */
static int write_quickly(int fd, SealedPage *pages, ptrdiff_t count, size_t size, size_t *done)
{
    int error;
    COWDB_QUICKLY(error, write_sealed_pages(fd, pages, count, size, done));
    return error;
}
static int start_quickly(int fd, uint64_t from)
{
    int error;
    COWDB_QUICKLY(error, start_writing(fd, from, 0));
    return error;
}
static int look_quickly(const char *path, uint64_t *device, uint64_t *inode)
{
    int error;
    COWDB_QUICKLY(error, device_and_inode(path, device, inode));
    return error;
}
static int lock_quickly(int fd, int release, long long start, long long length)
{
    int error;
    COWDB_QUICKLY(error, set_byte_lock(fd, release, start, length));
    return error;
}

/* ---------------------------------------------------------------- CRC-32C */

#define COWDB_CRC_POLYNOMIAL 0x82F63B78u /* Castagnoli, bits reversed */
#define COWDB_CRC_LANE 1360              /* bytes of each of three lanes: two rounds cover most of a page */

static uint32_t cowdb_crc_tables[8][256];
static uint32_t cowdb_crc_skip[4][256]; /* what COWDB_CRC_LANE zero bytes make of each byte of a register */
static int cowdb_crc_hardware = 0;

static uint32_t crc_by_table(uint32_t crc, const unsigned char *at, size_t length)
{
    while (length >= 8) {
        uint32_t low = crc ^ (uint32_t)get32(at), high = (uint32_t)get32(at + 4);
        crc = cowdb_crc_tables[7][low & 255] ^ cowdb_crc_tables[6][low >> 8 & 255]
            ^ cowdb_crc_tables[5][low >> 16 & 255] ^ cowdb_crc_tables[4][low >> 24]
            ^ cowdb_crc_tables[3][high & 255] ^ cowdb_crc_tables[2][high >> 8 & 255]
            ^ cowdb_crc_tables[1][high >> 16 & 255] ^ cowdb_crc_tables[0][high >> 24];
        at += 8;
        length -= 8;
    }
    while (length--)
        crc = cowdb_crc_tables[0][(crc ^ *at++) & 255] ^ crc >> 8;
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define COWDB_CRC_INSTRUCTION 1
#include <nmmintrin.h>

static inline uint32_t crc_skip_lane(uint32_t crc)
{
    return cowdb_crc_skip[0][crc & 255] ^ cowdb_crc_skip[1][crc >> 8 & 255]
         ^ cowdb_crc_skip[2][crc >> 16 & 255] ^ cowdb_crc_skip[3][crc >> 24];
}

/* The instruction takes three cycles and one can begin each cycle, so three lanes run side by side. */
__attribute__((target("sse4.2")))
static uint32_t crc_by_instruction(uint32_t first, const unsigned char *at, size_t length)
{
    uint64_t crc = first;
    while (length >= 3 * COWDB_CRC_LANE) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < COWDB_CRC_LANE; i += 8) {
            crc = _mm_crc32_u64(crc, get64(at + i));
            second = _mm_crc32_u64(second, get64(at + COWDB_CRC_LANE + i));
            third = _mm_crc32_u64(third, get64(at + 2 * COWDB_CRC_LANE + i));
        }
        crc = crc_skip_lane((uint32_t)crc) ^ second;
        crc = crc_skip_lane((uint32_t)crc) ^ third;
        at += 3 * COWDB_CRC_LANE;
        length -= 3 * COWDB_CRC_LANE;
    }
    for (; length >= 8; at += 8, length -= 8)
        crc = _mm_crc32_u64(crc, get64(at));
    for (; length; at++, length--)
        crc = _mm_crc32_u8((uint32_t)crc, *at);
    return (uint32_t)crc;
}
#endif

/* Fill the tables; called once, at import, before anybody else can call. */
static void crc_prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ COWDB_CRC_POLYNOMIAL : crc >> 1;
        cowdb_crc_tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = cowdb_crc_tables[table - 1][byte];
            cowdb_crc_tables[table][byte] = cowdb_crc_tables[0][crc & 255] ^ crc >> 8;
        }
    static const unsigned char zeros[COWDB_CRC_LANE];
    for (int place = 0; place < 4; place++)
        for (uint32_t byte = 0; byte < 256; byte++)
            cowdb_crc_skip[place][byte] = crc_by_table(byte << 8 * place, zeros, COWDB_CRC_LANE);
#ifdef COWDB_CRC_INSTRUCTION
    __builtin_cpu_init();
    cowdb_crc_hardware = __builtin_cpu_supports("sse4.2") ? 1 : 0;
#endif
}

/* The checksum of `length` bytes that follow bytes whose checksum is `before`; `portable` forbids the instruction. */
static uint32_t crc_of(const unsigned char *at, size_t length, uint32_t before, int portable)
{
    uint32_t crc = ~before;
#ifdef COWDB_CRC_INSTRUCTION
    if (cowdb_crc_hardware && !portable)
        return ~crc_by_instruction(crc, at, length);
#endif
    (void)portable;
    return ~crc_by_table(crc, at, length);
}

#endif
