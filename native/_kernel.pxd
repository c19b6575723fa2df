# What the parts take from C (see kernel.h), and the structs that they share.

cdef extern from "kernel.h" nogil:
    ctypedef unsigned char u8 "unsigned char"
    ctypedef unsigned int u32 "uint32_t"
    ctypedef unsigned long long u64 "uint64_t"
    ctypedef u8 *Bytes "unsigned char *"
    # Free pages that lie side by side.
    ctypedef struct Run "FreeRun":
        u64 start
        u64 length
    # Pages that a snapshot holds back: freed, but it sees them.
    ctypedef struct HeldRun:
        u64 start
        u64 length
        u64 birth
        u64 freed
    u64 get16(const u8 *at)
    u64 get32(const u8 *at)
    u64 get48(const u8 *at)
    u64 get64(const u8 *at)
    void put16(u8 *at, u64 value)
    void put32(u8 *at, u64 value)
    void put48(u8 *at, u64 value)
    void put64(u8 *at, u64 value)
    int order_of(const u8 *a, Py_ssize_t a_length, const u8 *b, Py_ssize_t b_length)
    u64 head_of(const u8 *key, Py_ssize_t length)
    u64 load_acquire(const u64 *at)
    void store_release(u64 *at, u64 value)
    void fence()
    void prefetch(const u8 *at)
    void sort_runs(Run *at, size_t count)
    void prefetch_all(const u8 *at, Py_ssize_t length)
    void prefetch_leaf(const u8 *at, Py_ssize_t length)
    int narrow(const u8 *slots, int first, int left, u64 wanted)
    void crc_prepare()
    u32 crc_of(const u8 *at, size_t length, u32 before, int portable)
    int COWDB_FREE_THREADED
    ctypedef struct Block:
        u8 *at
        size_t length
    int new_block(Block *block, size_t length, size_t large)
    void free_block(Block *block)
    void offer_block(Block *block)
    ctypedef struct Mutex:
        pass
    void lock_mutex(Mutex *mutex)
    void unlock_mutex(Mutex *mutex)
    int crc_hardware "cowdb_crc_hardware"
    int COWDB_SYSTEM_CALLS
    int COWDB_BYTE_LOCKS
    enum: SEALED_LIMIT
    int NO_SUCH_CALL "ENOSYS"
    int INTERRUPTED_CALL "EINTR"
    int NO_ENTRY "ENOENT"
    int IO_ERROR "EIO"
    int NO_DIRECTORY "ENOTDIR"
    # A page that has its number, and where it lies in memory.
    ctypedef struct SealedPage:
        u64 number
        u8 *at
    void sort_pages(SealedPage *at, size_t count)
    int write_sealed_pages(int fd, SealedPage *pages, Py_ssize_t count, size_t size, size_t *done)
    int start_writing(int fd, u64 first, u64 end)
    u64 process_id()
    long long file_size(int fd)

cdef extern from "kernel.h":
    object new_of(object kind, object nothing)
    object named_tuple(object kind, tuple fields)
    Py_ssize_t references_of(void *who)
    Py_ssize_t next_filled(list things, Py_ssize_t place)
    # These let the interpreter's lock go by themselves, if it is to be let go.
    int write_quickly(int fd, SealedPage *pages, Py_ssize_t count, size_t size, size_t *done)
    int start_quickly(int fd, u64 start)
    int look_quickly(const char *path, u64 *device, u64 *inode)
    int lock_quickly(int fd, int release, long long start, long long length)

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object)
    Py_buffer *PyMemoryView_GET_BUFFER(object)
    void *PyEval_SaveThread() nogil
    void PyEval_RestoreThread(void *) nogil

# A page as it is searched: where its bytes and its slots begin, and what of its header counts.
cdef struct View:
    u8 *at
    u8 *slots
    int size
    int cells
    int prefix
    int kind
    int level
    int exact  # the last search found the very key

# A reference taken apart.
cdef struct Ref:
    u64 number
    u64 birth
    u64 count
    u32 checksum

# Where an entry's payload lies.
cdef struct Found:
    u8 *payload
    int length
    int info

# An entry taken apart, while its page is laid out anew.
cdef struct Cell:
    u8 *key
    u8 *payload
    int key_length
    int payload_length
    int info

# The way down to a leaf. Its pages are borrowed: the tree holds them.
cdef struct Way:
    void *pages[48]
    int at[48]
    int depth

# A place in a ring of transactions. `who` is borrowed: the transaction leaves the ring before it dies.
cdef struct Link:
    Link *before
    Link *after
    void *who
