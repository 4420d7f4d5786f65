/* The pool: its state, the life of its segments, opening and closing. */
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TELL_EVERY ((size_t)16 << 20) /* bytes; as own_memory.py says */

struct pool pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .directory = -1,
    .limits.threshold = SIZE_MAX,
    .budget = SIZE_MAX,
    .most = SIZE_MAX,
};

/* A duplicate of the directory's descriptor, to be dropped; -1 if the pool is closed or no
 * descriptor is left.  Callers hold the lock. */
int
pool_hold_directory(void)
{
    return pool.directory < 0 ? -1 : fcntl(pool.directory, F_DUPFD_CLOEXEC, 0);
}

void
pool_drop_directory(int dir)
{
    if (dir >= 0) {
        close(dir);
    }
}

/* How many idle bytes may be kept, once `more` bytes are live.  Callers hold the lock. */
size_t
pool_may_keep(size_t more)
{
    size_t live = pool.counts.live_bytes + more;
    size_t left = pool.budget > live ? pool.budget - live : 0;
    size_t beyond = pool.most > live ? pool.most - live : 0;
    if (beyond > pool.most - pool.budget) {
        beyond = pool.most - pool.budget;
    }
    if (left < beyond) {
        left = beyond;
    }
    return left < pool.limits.keep ? left : pool.limits.keep;
}

/* ---- the life of a segment ---- */

/* A new record with a name of its own; its file is not made yet.  Callers hold the lock. */
segment *
pool_new_segment(size_t size)
{
    if (pool.counts.mappings + XSHM_MAPPINGS_PER_SEGMENT > pool.limits.mappings) {
        pool.counts.refused++;
        pool.counts.refused_because = ENOMEM;
        return NULL;
    }
    segment *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->state = SEGMENT_IDLE;
        s->pool = pool.opening;
        s->size = size;
        snprintf(s->name, sizeof s->name, "%s.%llx.segment", pool.owner,
                 (unsigned long long)++pool.last_number);
        pool.counts.mappings += XSHM_MAPPINGS_PER_SEGMENT;
    }
    return s;
}

/* The end of a segment that no list knows: its file, its mappings, its record. */
void
pool_discard(int dir, segment *s)
{
    if (dir >= 0 && s->pool != 0) {
        segment_unlink(dir, s);
    }
    segment_unmap(s);
    pthread_mutex_lock(&pool.lock);
    if (dir < 0 && pool.directory >= 0 && s->pool == pool.opening) { /* no descriptor was left */
        segment_unlink(pool.directory, s);
    }
    pool.counts.mappings -= s->state == SEGMENT_LEASED ? 1 : XSHM_MAPPINGS_PER_SEGMENT;
    pthread_mutex_unlock(&pool.lock);
    free(s);
}

/* The same for a chain by `older`; returns how many bytes went. */
size_t
pool_discard_all(int dir, segment *chain)
{
    size_t bytes = 0;
    while (chain != NULL) {
        segment *next = chain->older;
        bytes += chain->size;
        pool_discard(dir, chain);
        chain = next;
    }
    return bytes;
}

/* Tell a worker's nanny how many bytes are kept for the next arrays, if that has changed by much:
 * it takes five microseconds.  Callers hold the lock. */
void
pool_tell_idle(void)
{
    size_t now = idle_count().free_bytes;
    size_t change = now > pool.told ? now - pool.told : pool.told - now;
    bool watched = pool.budget < PTRDIFF_MAX; /* it is a worker's */
    if (watched && change >= TELL_EVERY && pool.directory >= 0) {
        room_tell_idle(pool.directory, pool.owner, now);
        pool.told = now;
    }
}

/* Put a segment without an array back: to the free ones, or to those that wait. */
void
pool_make_idle(segment *s, bool handed_out)
{
    segment *evicted = NULL;
    s->state = SEGMENT_IDLE;
    pthread_mutex_lock(&pool.lock);
    if (s->pool != pool.opening || pool.directory < 0) { /* the pool was closed meanwhile */
        pthread_mutex_unlock(&pool.lock);
        pool_discard(-1, s);
        return;
    }
    size_t keep = pool_may_keep(0);
    if (s->size > keep) { /* keeping it would push out all others, and then itself */
        s->older = NULL;
        evicted = s;
    }
    else {
        idle_push(s, handed_out);
        evicted = idle_evict(keep, pool.limits.waiting);
        pool_tell_idle();
    }
    int dir = evicted == NULL ? -1 : pool_hold_directory();
    pthread_mutex_unlock(&pool.lock);
    pool_discard_all(dir, evicted);
    pool_drop_directory(dir);
}

size_t
pool_trim(size_t keep)
{
    pthread_mutex_lock(&pool.lock);
    int dir = pool_hold_directory();
    segment *evicted = idle_evict(keep, pool.limits.waiting);
    pool_tell_idle();
    pthread_mutex_unlock(&pool.lock);
    size_t bytes = pool_discard_all(dir, evicted);
    pool_drop_directory(dir);
    return bytes;
}

/* ---- opening, closing, bounds ---- */

int
pool_open(int dir, const char *owner, const pool_limits *limits)
{
    if (strlen(owner) >= sizeof pool.owner) {
        return -ENAMETOOLONG;
    }
    pthread_mutex_lock(&pool.lock);
    int error = pool.directory >= 0 ? -EBUSY : 0;
    if (error == 0) {
        pool.directory = fcntl(dir, F_DUPFD_CLOEXEC, 0);
        error = pool.directory < 0 ? -errno : 0;
    }
    if (error == 0) {
        snprintf(pool.owner, sizeof pool.owner, "%s", owner);
        pool.limits = *limits;
        pool.budget = pool.most = SIZE_MAX;
        pool.opening++;
        pool.told = 0;
        size_t size;
        room_was_asked(pool.directory, &size); /* before us: not of us */
        __atomic_store_n(&pool.wait_again, 0, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&pool.lock);
    return error;
}

/* Live arrays stay as they are, their files without a name; idle segments are freed. */
void
pool_close(void)
{
    pthread_mutex_lock(&pool.lock);
    int dir = pool.directory;
    pool.directory = -1;
    pool.limits.threshold = SIZE_MAX;
    segment *idle = idle_evict(0, 0);
    for (size_t i = 0; i < span_count(); i++) {
        segment *s = span_at(i);
        if (s->pool == pool.opening && s->state != SEGMENT_LEASED) {
            segment_unlink(dir, s);
            s->pool = 0;
        }
    }
    pthread_mutex_unlock(&pool.lock);
    pool_discard_all(dir, idle);
    pool_drop_directory(dir);
}

bool
pool_is_open(void)
{
    pthread_mutex_lock(&pool.lock);
    bool open = pool.directory >= 0;
    pthread_mutex_unlock(&pool.lock);
    return open;
}

void
pool_set_limits(const pool_limits *limits)
{
    pthread_mutex_lock(&pool.lock);
    if (pool.directory >= 0) {
        pool.limits = *limits;
    }
    pthread_mutex_unlock(&pool.lock);
    pool_trim(limits->keep);
}

/* A bound on live and idle bytes together, as far as idle ones can keep it.  Where most of it is
 * live, it is `most`; no more idle bytes than between the two are kept for that. */
void
pool_set_budget(size_t bytes, size_t most)
{
    pthread_mutex_lock(&pool.lock);
    pool.budget = bytes;
    pool.most = most > bytes ? most : bytes;
    size_t keep = pool_may_keep(0);
    pthread_mutex_unlock(&pool.lock);
    pool_trim(keep);
}

size_t
pool_threshold(void)
{
    return __atomic_load_n(&pool.limits.threshold, __ATOMIC_RELAXED);
}

pool_counts
pool_count(void)
{
    pthread_mutex_lock(&pool.lock);
    pool_counts now = pool.counts;
    now.idle = idle_count();
    pthread_mutex_unlock(&pool.lock);
    return now;
}
