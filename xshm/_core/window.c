/* A part of a file, mapped for as long as somebody looks at it.
 *
 * A container is not the pool's: whoever knows its name may map it, any number of times, and
 * needs neither a lock nor an open descriptor for it.  The kernel keeps the file's pages until
 * the last mapping is gone, also when the name is removed or given to another file.
 */
#include "core.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Invariant 8, "nothing in it is trusted": a mapping past the end of its file would
 * end the process (SIGBUS) at the first look. */
int
window_map(int file, off_t offset, size_t length, bool shared, window *w)
{
    struct stat status;
    if (fstat(file, &status) != 0) {
        return -errno;
    }
    if (offset < 0 || length == 0 || offset > status.st_size
        || length > (size_t)(status.st_size - offset)) {
        return -ERANGE;
    }
    off_t page = (off_t)sysconf(_SC_PAGESIZE);
    w->skipped = (size_t)(offset % page);
    w->size = length + w->skipped;
    /* Private pages are the process's own, as far as it writes: none are set aside before. */
    int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE;
    w->start = mmap(NULL, w->size, PROT_READ | PROT_WRITE, flags, file,
                    offset - (off_t)w->skipped);
    return w->start == MAP_FAILED ? -errno : 0;
}

void
window_unmap(window *w)
{
    munmap(w->start, w->size);
}
