/* System calls on one segment.  No lock and no list here: the files of the pool know who may call
 * when. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4 /* for shared mappings: Linux 5.13 */
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define RESERVE_STEP ((off_t)4 << 20)

static size_t
page_size(void)
{
    static size_t size;
    if (size == 0) {
        size = (size_t)sysconf(_SC_PAGESIZE);
    }
    return size;
}

/* Address space for `size` bytes, aligned so that the kernel can move whole page-table
 * pages when the segment is sealed (and use huge pages where the tmpfs has them). */
static char *
reserve_addresses(size_t size)
{
    size_t slack = size < HUGE_PAGE ? 0 : HUGE_PAGE;
    char *p = mmap(NULL, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) {
        return NULL;
    }
    if (slack == 0) {
        return p;
    }
    size_t before = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0) {
        munmap(p, before);
    }
    if (before < slack) {
        munmap(p + before + size, slack - before);
    }
    return p + before;
}

static int
map_shared(int fd, segment *s)
{
    char *at = reserve_addresses(s->size);
    if (at == NULL) {
        return -ENOMEM;
    }
    if (mmap(at, s->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int error = -errno;
        munmap(at, s->size);
        return error;
    }
    s->shared = at;
    return 0;
}

static int
populate(char *start, size_t size)
{
    int result;
    do {
        result = madvise(start, size, MADV_POPULATE_WRITE);
    } while (result != 0 && (errno == EINTR || errno == EAGAIN));
    return result == 0 ? 0 : -errno;
}

/* Invariant 5, "no store into a page that might not be there": every byte that a mapping
 * will show is reserved first.  In steps, because a signal undoes an unfinished call. */
static int
reserve_pages(int fd, off_t from, off_t until)
{
    while (from < until) {
        off_t step = until - from < RESERVE_STEP ? until - from : RESERVE_STEP;
        int error = posix_fallocate(fd, from, step);
        if (error == 0) {
            from += step;
        }
        else if (error != EINTR) {
            return -error;
        }
    }
    return 0;
}

static int
create_file(int directory, segment *s)
{
    int fd = openat(directory, s->name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    struct stat status;
    if (fstat(fd, &status) != 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    s->inode = status.st_ino;
    return fd;
}

/* Map the file and fault in all of it at once, which is cheaper than page by page.  Where
 * the tmpfs gives huge pages to who asks (huge=advise), asking must come before the pages
 * are there; populating then reserves them, and fails where there is no room. */
static int
map_reserved(int fd, segment *s, bool huge)
{
    int error = 0;
    if (!huge) {
        error = reserve_pages(fd, 0, (off_t)s->size);
    }
    else if (ftruncate(fd, (off_t)s->size) != 0) {
        error = -errno;
    }
    if (error == 0) {
        error = map_shared(fd, s);
    }
    if (error == 0 && huge) {
        madvise(s->shared, s->size, MADV_HUGEPAGE);
    }
    if (error == 0) {
        error = populate(s->shared, s->size);
        if (error == -EFAULT) { /* what populate says where a store would raise SIGBUS */
            error = -ENOSPC;
        }
        if (error == -EINVAL) { /* before Linux 5.14: pages come as they are touched */
            error = huge ? reserve_pages(fd, 0, (off_t)s->size) : 0;
        }
        if (error != 0) {
            munmap(s->shared, s->size);
            s->shared = NULL;
        }
    }
    return error;
}

/* Make the file of `s` (its name and size are set) and map it, shared and warm. */
int
segment_create(int directory, segment *s, bool huge)
{
    int fd = create_file(directory, s);
    if (fd < 0) {
        return fd;
    }
    int error = map_reserved(fd, s, huge);
    close(fd);
    if (error != 0) {
        segment_unlink(directory, s);
    }
    return error;
}

/* Invariant 10, "behind its array a segment is zero": what a longer one left there goes
 * before the next may be handed out. */
void
segment_use(segment *s, size_t length)
{
    if (s->used > length) {
        memset(s->shared + length, 0, s->used - length);
    }
    s->used = length;
}

/* Write `length` bytes into the file of `s`, without mapping it: for bytes that only others
 * will read, writing into a cold file costs half of what storing into a cold mapping does. */
int
segment_fill(int directory, segment *s, bool fresh, const char *bytes, size_t length)
{
    int fd = fresh ? create_file(directory, s)
                   : openat(directory, s->name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return fresh ? fd : -errno;
    }
    int error = 0;
    size_t done = 0;
    while (done < length && error == 0) {
        ssize_t n = pwrite(fd, bytes + done, length - done, (off_t)done);
        if (n > 0) {
            done += (size_t)n;
        }
        else if (n == 0 || errno != EINTR) {
            error = n == 0 ? -EIO : -errno;
        }
    }
    if (error == 0 && s->used > length && ftruncate(fd, (off_t)length) != 0) {
        error = -errno; /* invariant 10, as in segment_use */
    }
    if (error == 0) { /* the rest of its size, for the next array that gets it */
        s->used = length;
        error = reserve_pages(fd, (off_t)length, (off_t)s->size);
    }
    close(fd);
    if (error != 0) {
        segment_unlink(directory, s);
    }
    return error;
}

/* Map an idle segment again that has no shared mapping. */
int
segment_warm(int directory, segment *s, bool huge)
{
    int fd = openat(directory, s->name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    int error = map_reserved(fd, s, huge);
    close(fd);
    return error;
}

/* Invariant 1, "a segment is written by its owner only, and only until it is sealed":
 * replace the array's mapping, at the same address, by a private copy-on-write one.
 *
 * The shared mapping is moved aside with its page tables, not dropped: that takes 0.1 ms
 * for 256 MiB where dropping takes 10, and the segment is still warm when it is recycled.
 * MREMAP_DONTUNMAP leaves the old range mapped (and empty) until the private mapping takes
 * its place, so that another thread may touch the array meanwhile.
 *
 * The private mapping holds a shared lock, as a lease does: a child that inherits it by
 * fork keeps the segment from being recycled for as long as it has it mapped. */
int
segment_seal(int directory, segment *s)
{
    int fd = openat(directory, s->name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    if (flock(fd, LOCK_SH | LOCK_NB) != 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    char *aside = reserve_addresses(s->size);
    if (aside != NULL
        && mremap(s->start, s->size, s->size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                  aside) == MAP_FAILED) {
        munmap(aside, s->size); /* an older kernel: map it anew when it is recycled */
        aside = NULL;
    }
    int error = 0;
    if (mmap(s->start, s->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED) {
        /* The old shared mapping is still there: the array goes on as if nothing was. */
        error = -errno;
        if (aside != NULL) {
            munmap(aside, s->size);
        }
    }
    else {
        s->shared = aside;
        s->state = SEGMENT_SEALED;
    }
    close(fd); /* the lock lives on with the mapping */
    return error;
}

/* What is left to do before a fork when sealing fails: the array's bytes move to ordinary
 * memory at the same address, so that parent and child cannot reach each other's. */
int
segment_isolate(segment *s)
{
    char *copy = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) {
        return -errno;
    }
    memcpy(copy, s->start, s->size);
    if (mremap(copy, s->size, s->size, MREMAP_MAYMOVE | MREMAP_FIXED, s->start) == MAP_FAILED) {
        int error = -errno;
        munmap(copy, s->size);
        return error;
    }
    s->shared = NULL;
    s->state = SEGMENT_SEALED;
    return 0;
}

/* Invariant 2, "a segment is recycled only when its array is gone, an exclusive lock can be
 * had and, under that lock, its link count is 1".  In this order: a receiver locks before
 * it unlinks its token, so that one of the two always shows a hand-over in flight. */
int
segment_try_reclaim(int directory, const segment *s)
{
    int fd = openat(directory, s->name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    int error = 0;
    struct stat status;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &status) != 0) {
        error = -errno;
    }
    else if (status.st_nlink != 1) {
        error = -EBUSY;
    }
    close(fd); /* and unlocks: no mapping was made from this one */
    return error;
}

/* Give back all of an idle segment but the first `size` bytes.  Nobody else has it mapped, by
 * invariant 2, so nobody's pages go; and ours are unmapped before the file gets shorter, by
 * invariant 5, "no store into a page that might not be there". */
int
segment_shrink(int directory, segment *s, size_t size)
{
    int fd = openat(directory, s->name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    int error = 0;
    if (s->shared != NULL && munmap(s->shared + size, s->size - size) != 0) {
        error = -errno;
    }
    else {
        s->size = size;
        s->used = s->used < size ? s->used : size;
        error = ftruncate(fd, (off_t)size) == 0 ? 0 : -errno;
    }
    close(fd);
    return error;
}

/* Drop every mapping of `s`. */
void
segment_unmap(segment *s)
{
    if (s->shared != NULL && s->shared != s->start) {
        munmap(s->shared, s->size);
    }
    if (s->start != NULL) {
        munmap(s->start, s->size);
    }
    s->start = s->shared = NULL;
}

void
segment_unlink(int directory, const segment *s)
{
    unlinkat(directory, s->name, 0); /* gone already (by hand, or a janitor) is as good */
}

/* A token: one more name of the segment's file, for one hand-over.  Invariant 3, "a handle
 * either gives the bytes that were sent or raises": a lease knows its file by inode, since
 * its name was somebody else's to give. */
int
segment_link(int directory, const segment *s, const char *token)
{
    if (linkat(directory, s->name, directory, token, 0) != 0) {
        return -errno;
    }
    struct stat status;
    if (fstatat(directory, token, &status, AT_SYMLINK_NOFOLLOW) == 0
        && status.st_ino == s->inode) {
        return 0;
    }
    unlinkat(directory, token, 0);
    return -ESTALE;
}

static int
read_all(int fd, char *into, size_t length, off_t offset)
{
    while (length > 0) {
        ssize_t n = pread(fd, into, length, offset);
        if (n > 0) {
            into += n;
            offset += n;
            length -= (size_t)n;
        }
        else if (n == 0 || errno != EINTR) {
            return n == 0 ? -EIO : -errno;
        }
    }
    return 0;
}

/* Take a hand-over: open the token, lock, map, unlink the token.
 *
 * Invariant 3: the token must still be there when it is unlinked, under the lock.  Were it
 * withdrawn before, its owner may have recycled the segment between our open and our lock,
 * and shortened it: whatever else is wrong then, the hand-over is lost.
 *
 * Without `mapped` (too many mappings) the bytes are read into ordinary memory instead, and
 * s->start is to be freed with free().  `*skipped` says how far behind s->start they are. */
int
segment_lease(int directory, segment *s, const char *token, off_t offset, size_t length,
              bool mapped, size_t *skipped)
{
    int fd = openat(directory, token, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return -errno;
    }
    int error = 0;
    struct stat status;
    /* Invariant 8, "nothing in it is trusted": what a peer says is checked against the file;
     * whose it is before the lock, for which somebody else could let us wait for ever. */
    if (fstat(fd, &status) != 0) {
        error = -errno;
    }
    else if (!S_ISREG(status.st_mode) || status.st_uid != geteuid()) {
        error = -EPERM;
    }
    while (error == 0 && flock(fd, LOCK_SH) != 0) {
        error = errno == EINTR ? 0 : -errno;
    }
    if (error == 0 && fstat(fd, &status) != 0) {
        error = -errno;
    }
    if (error == 0
        && (offset < 0 || length == 0 || offset > status.st_size
            || length > (size_t)(status.st_size - offset))) {
        error = -ERANGE;
    }
    if (error == 0) {
        *skipped = mapped ? (size_t)offset % page_size() : 0;
        s->size = length + *skipped;
        s->offset = offset - (off_t)*skipped;
        s->inode = status.st_ino;
        if (mapped) {
            s->start = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                            fd, s->offset);
            if (s->start == MAP_FAILED) {
                s->start = NULL;
                error = -errno;
            }
        }
        else {
            s->start = malloc(s->size);
            error = s->start == NULL ? -ENOMEM : read_all(fd, s->start, length, offset);
        }
    }
    if (error == 0 ? unlinkat(directory, token, 0) != 0
                   : fstatat(directory, token, &status, AT_SYMLINK_NOFOLLOW) != 0) {
        error = -errno;
    }
    if (error != 0 && s->start != NULL) {
        if (mapped) {
            munmap(s->start, s->size);
        }
        else {
            free(s->start);
        }
        s->start = NULL;
    }
    close(fd);
    return error;
}
