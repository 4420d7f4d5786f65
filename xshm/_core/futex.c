/* Waiting for a word of shared memory to change.
 *
 * The word counts events.  Who waits reads it first, then looks whether what it waits for is
 * there already, and sleeps only if the word still has that value: an event in between is not
 * missed, and neither side takes a lock.  The kernel knows the word by its page, so processes
 * that have it mapped at different addresses meet.
 */
#include "core.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Sleep while the word is `seen`, for that long at most.  A signal ends it early too: the
 * caller looks again in every case. */
int
futex_wait(const uint32_t *word, uint32_t seen, double seconds)
{
    struct timespec time = {.tv_sec = (time_t)seconds};
    time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
    if (syscall(SYS_futex, word, FUTEX_WAIT, seen, &time, NULL, 0) == 0 || errno == EAGAIN
        || errno == ETIMEDOUT || errno == EINTR) {
        return 0;
    }
    return -errno;
}

/* Count an event, and wake everybody who waits for one. */
int
futex_wake(uint32_t *word)
{
    __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
    return syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0) < 0 ? -errno : 0;
}
