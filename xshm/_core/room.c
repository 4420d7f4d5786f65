/* Room in the directory, asking other processes for it, and telling what could be given.
 *
 * Who finds it short says so in a file beside the folder of segments: its time is when, and
 * its size how many bytes found no room.  It has no pages, so that it can be made where there
 * is no room at all; and as it is neither mapped nor read, nobody comes to harm by what
 * somebody does to it.  All others look at it now and then.  In the same way the size of a
 * process's own file tells how much it keeps for its next arrays.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define WANTED "../wanted"
#define PROCESSES "../processes/"
#define LOOK_EVERY (10 * XSHM_MILLISECOND)

static uint64_t seen;      /* the time of the last ask that was looked at */
static uint64_t next_look; /* earlier is too early */

static uint64_t
nanoseconds(const struct timespec *t)
{
    return (uint64_t)t->tv_sec * (1000 * XSHM_MILLISECOND) + (uint64_t)t->tv_nsec;
}

uint64_t
monotonic_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return nanoseconds(&now);
}

/* The same, a few milliseconds old, in a quarter of the time. */
uint64_t
recent_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return nanoseconds(&now);
}

/* A line of /proc/meminfo (proc_meminfo(5)), in bytes; 0 if there is none. */
static size_t
bytes_of(const char *meminfo, const char *name)
{
    const char *line = strstr(meminfo, name);
    return line == NULL ? 0 : (size_t)strtoull(line + strlen(name), NULL, 10) * 1024;
}

/* The machine's memory, which is the limit of a tmpfs that was mounted without one. */
static int
memory_left(free_room *r)
{
    char meminfo[4096];
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    ssize_t n = read(fd, meminfo, sizeof meminfo - 1);
    close(fd);
    meminfo[n < 0 ? 0 : n] = '\0';
    r->all = bytes_of(meminfo, "MemTotal:");
    r->free = bytes_of(meminfo, "MemAvailable:");
    return 0;
}

/* How many bytes are free, and below how many room is short: an eighth of all, which lasts
 * for as long as others take to hear of it. */
int
room_left(int directory, free_room *r)
{
    struct statvfs status;
    if (fstatvfs(directory, &status) != 0) {
        return -errno;
    }
    r->all = (size_t)status.f_blocks * status.f_frsize;
    r->free = (size_t)status.f_bavail * status.f_frsize;
    int error = r->all == 0 ? memory_left(r) : 0; /* mount -o size=0 */
    r->enough = r->all / 8;
    return error;
}

/* Tell others that room is short, and how many bytes found none.  Where this fails they are
 * not told, and nothing else is lost. */
void
room_ask(int directory, size_t size)
{
    int fd = openat(directory, WANTED,
                    O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0) {
        return;
    }
    struct stat status;
    struct timespec now[2];
    clock_gettime(CLOCK_REALTIME, &now[0]); /* the kernel's own times are too coarse */
    now[1] = now[0];
    /* Not if it is another file's further name, which would be cut to size. */
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1
        && ftruncate(fd, (off_t)size) == 0) {
        futimens(fd, now);
    }
    close(fd);
}

/* Has anybody asked since this was called last?  `*size` is how many bytes found no room. */
bool
room_was_asked(int directory, size_t *size)
{
    struct stat status;
    if (fstatat(directory, WANTED, &status, AT_SYMLINK_NOFOLLOW) != 0
        || !S_ISREG(status.st_mode)) {
        return false;
    }
    uint64_t asked = nanoseconds(&status.st_mtim);
    *size = (size_t)status.st_size;
    return __atomic_exchange_n(&seen, asked, __ATOMIC_RELAXED) != asked;
}

/* Is it time to look again?  This is asked for each array, and looking takes a microsecond. */
bool
room_is_time_to_look(void)
{
    uint64_t now = recent_time();
    uint64_t due = __atomic_load_n(&next_look, __ATOMIC_RELAXED);
    return now >= due
           && __atomic_compare_exchange_n(&next_look, &due, now + LOOK_EVERY, false,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* Tell others how many bytes this process keeps for its next arrays.  Where this fails the last
 * figure stands. */
void
room_tell_idle(int directory, const char *process, size_t bytes)
{
    char file[sizeof PROCESSES + XSHM_NAME_SIZE];
    snprintf(file, sizeof file, PROCESSES "%s", process);
    int fd = openat(directory, file, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    const struct timespec no_time[2] = {{0}, {0}}; /* a janitor notes there when we died */
    if (ftruncate(fd, (off_t)bytes) == 0) {
        futimens(fd, no_time);
    }
    close(fd);
}
