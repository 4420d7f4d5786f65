/* Has a private mapping been written to?  The kernel knows. */
#include "core.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct scan_argument { /* struct pm_scan_arg of linux/fs.h, Linux 6.7 */
    uint64_t size, flags, start, end, walk_end, regions, regions_length, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct scan_region {
    uint64_t start, end, categories;
};
#define PAGEMAP_SCAN_REQUEST _IOWR('f', 16, struct scan_argument)
#define PAGE_IN_FILE ((uint64_t)1 << 2)
#define PAGE_PRESENT ((uint64_t)1 << 3)
#define PAGE_SWAPPED ((uint64_t)1 << 4)

/* One entry of /proc/self/pagemap (admin-guide/mm/pagemap.rst of the kernel's documentation). */
#define ENTRY_IN_FILE ((uint64_t)1 << 61)
#define ENTRY_SWAPPED ((uint64_t)1 << 62)
#define ENTRY_PRESENT ((uint64_t)1 << 63)

static int pagemap = -1;
static pthread_mutex_t pagemap_lock = PTHREAD_MUTEX_INITIALIZER;

/* An open pagemap shows the process that opened it, so a child needs its own. */
void
pagemap_after_fork(void)
{
    pthread_mutex_init(&pagemap_lock, NULL);
    if (pagemap >= 0) {
        close(pagemap);
        pagemap = -1;
    }
}

static int
open_pagemap(void)
{
    pthread_mutex_lock(&pagemap_lock);
    if (pagemap < 0) {
        pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    }
    int fd = pagemap;
    pthread_mutex_unlock(&pagemap_lock);
    return fd;
}

/* Invariant 4, "a lease that has been written to is never handed on as the original": a
 * store into a private file mapping leaves a page that is not the file's.  Assume the worst
 * where the kernel cannot be asked. */
bool
range_was_written(const char *start, size_t length)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = (uintptr_t)start / page * page;
    uintptr_t until = ((uintptr_t)start + length + page - 1) / page * page;
    int fd = open_pagemap();
    if (fd < 0) {
        return true;
    }
    struct scan_region region;
    struct scan_argument scan = {
        .size = sizeof scan,
        .start = from,
        .end = until,
        .regions = (uintptr_t)&region,
        .regions_length = 1,
        .max_pages = 1,
        .category_inverted = PAGE_IN_FILE,
        .category_mask = PAGE_IN_FILE,
        .category_anyof_mask = PAGE_PRESENT | PAGE_SWAPPED,
        .return_mask = PAGE_PRESENT,
    };
    int found = ioctl(fd, PAGEMAP_SCAN_REQUEST, &scan);
    if (found >= 0) {
        return found > 0;
    }
    uint64_t entries[512];
    for (uintptr_t at = from; at < until; at += page * 512) {
        size_t pages = (until - at) / page < 512 ? (until - at) / page : 512;
        ssize_t n = pread(fd, entries, pages * 8, (off_t)(at / page * 8));
        if (n != (ssize_t)(pages * 8)) {
            return true;
        }
        for (size_t i = 0; i < pages; i++) {
            if ((entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) && !(entries[i] & ENTRY_IN_FILE)) {
                return true;
            }
        }
    }
    return false;
}
