/* What becomes of the pool when the process forks.
 *
 * Invariant 7, "after a fork the child owns nothing and neither side's writes reach the
 * other": every array is sealed before the fork, so parent and child both see private
 * mappings, whose shared lock (one for both) keeps the parent from recycling the segment
 * while the child has it.
 */
#include "pool.h"

#include <sys/mman.h>

static void
before_fork(void)
{
    pthread_mutex_lock(&pool.lock);
    for (size_t i = 0; i < span_count(); i++) {
        segment *s = span_at(i);
        if (s->state == SEGMENT_OPEN && segment_seal(pool.directory, s) != 0
            && segment_isolate(s) != 0) {
            /* No memory for either: the child does without, and a touch ends it, which is
             * better than two processes writing to one array. */
            madvise(s->start, s->size, MADV_DONTFORK);
        }
    }
}

static void
after_fork_in_parent(void)
{
    pthread_mutex_unlock(&pool.lock);
}

static void
after_fork_in_child(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    pool_counts *counts = &pool.counts;
    for (size_t i = 0; i < span_count(); i++) {
        segment *s = span_at(i);
        if (s->state == SEGMENT_OPEN || s->state == SEGMENT_SEALED) {
            if (s->shared != NULL && s->shared != s->start) {
                munmap(s->shared, s->size);
            }
            s->shared = NULL;
            s->pool = 0;
            s->state = SEGMENT_LEASED;
            counts->live_segments--;
            counts->live_bytes -= s->size;
            counts->leased_segments++;
            counts->leased_bytes += s->size;
            counts->mappings -= XSHM_MAPPINGS_PER_SEGMENT - 1;
        }
    }
    int dir = pool.directory;
    pool.directory = -1;
    pool.limits.threshold = SIZE_MAX;
    pool_discard_all(-1, idle_evict(0, 0));
    pool_drop_directory(dir);
    pagemap_after_fork();
}

int
pool_install_fork_handlers(void)
{
    return -pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
