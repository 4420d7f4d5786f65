/* Hand-over: bytes of this process to others, by a token, and leases of theirs. */
#include "pool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static segment *
find_range(const char *start, size_t length)
{
    segment *s = span_find(start);
    return s != NULL && length <= (size_t)(s->start + s->size - start) ? s : NULL;
}

/* The segment or lease that holds these bytes, copied to `found`. */
bool
pool_find(const char *start, size_t length, segment *found)
{
    pthread_mutex_lock(&pool.lock);
    segment *s = find_range(start, length);
    if (s != NULL) {
        *found = *s;
    }
    pthread_mutex_unlock(&pool.lock);
    return s != NULL;
}

/* Make `token` a name of the segment that holds these bytes, sealing it if need be.  The
 * caller keeps the bytes alive meanwhile.  -ENOENT: they are in none, or its name is gone;
 * -ESTALE: they were written to since they were handed out. */
int
pool_share(const char *start, size_t length, const char *token, segment *shared)
{
    if (length == 0) {
        return -EINVAL;
    }
    int error = 0;
    bool sealed_before = true;
    pthread_mutex_lock(&pool.lock);
    segment *s = find_range(start, length);
    if (s == NULL || pool.directory < 0) {
        error = -ENOENT;
    }
    else if (s->state == SEGMENT_OPEN) {
        sealed_before = false;
        error = segment_seal(pool.directory, s);
        pool.counts.sealed += error == 0;
    }
    int dir = -1;
    if (error == 0) {
        *shared = *s;
        dir = pool_hold_directory();
    }
    pthread_mutex_unlock(&pool.lock);
    if (error != 0) {
        return error;
    }
    if (dir < 0) {
        return -EMFILE;
    }
    if (sealed_before && range_was_written(start, length)) {
        error = -ESTALE;
    }
    else {
        error = segment_link(dir, shared, token);
    }
    pool_drop_directory(dir);
    return error;
}

/* Copy bytes from ordinary memory into a segment and make `token` a name of it. */
int
pool_copy_in(const char *bytes, size_t length, const char *token, bool patient, segment *copied)
{
    prepared p;
    int error = pool_prepare(length, bytes, patient ? EFFORT_WAIT : EFFORT_MAKE, &p);
    if (error != 0) {
        return error;
    }
    error = segment_link(p.directory, p.segment, token);
    pool_drop_directory(p.directory);
    *copied = *p.segment;
    pthread_mutex_lock(&pool.lock);
    *(p.fresh ? &pool.counts.created : &pool.counts.recycled) += 1;
    pthread_mutex_unlock(&pool.lock);
    pool_make_idle(p.segment, true);
    return error;
}

segment *
pool_lease(const char *token, const char *name, off_t offset, size_t length, size_t *skipped,
           int *error)
{
    segment *s = calloc(1, sizeof *s);
    if (s == NULL) {
        *error = -ENOMEM;
        return NULL;
    }
    snprintf(s->name, sizeof s->name, "%s", name);
    pthread_mutex_lock(&pool.lock);
    int dir = pool_hold_directory();
    *error = dir >= 0 ? 0 : pool.directory < 0 ? -ENOENT : -EMFILE;
    bool mapped = pool.counts.mappings < pool.limits.mappings;
    pool.counts.mappings += mapped;
    s->state = mapped ? SEGMENT_LEASED : SEGMENT_COPIED;
    pthread_mutex_unlock(&pool.lock);
    if (dir >= 0) {
        *error = segment_lease(dir, s, token, offset, length, mapped, skipped);
        pool_drop_directory(dir);
    }
    if (*error == 0 && mapped) {
        pthread_mutex_lock(&pool.lock);
        *error = span_insert(s);
        if (*error == 0) {
            pool.counts.leased_segments++;
            pool.counts.leased_bytes += s->size;
        }
        pthread_mutex_unlock(&pool.lock);
    }
    if (*error == 0) {
        return s;
    }
    if (mapped) {
        pool_discard(-1, s);
    }
    else {
        free(s);
    }
    return NULL;
}

void
pool_drop_lease(segment *s)
{
    if (s->state == SEGMENT_COPIED) {
        free(s->start);
        free(s);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    span_remove(s);
    pool.counts.leased_segments--;
    pool.counts.leased_bytes -= s->size;
    pthread_mutex_unlock(&pool.lock);
    pool_discard(-1, s);
}

/* Leases of segments that have no name any more, as their owner has ended or given them up:
 * copies, chained by `older`, for the caller to free. */
segment *
pool_orphans(void)
{
    segment *leases = NULL, *orphans = NULL;
    pthread_mutex_lock(&pool.lock);
    int dir = pool_hold_directory();
    for (size_t i = 0; dir >= 0 && i < span_count(); i++) {
        const segment *s = span_at(i);
        segment *copy = s->state == SEGMENT_LEASED ? malloc(sizeof *copy) : NULL;
        if (copy != NULL) {
            *copy = *s;
            copy->older = leases;
            leases = copy;
        }
    }
    pthread_mutex_unlock(&pool.lock);
    while (leases != NULL) {
        segment *s = leases;
        leases = s->older;
        if (faccessat(dir, s->name, F_OK, 0) == 0) {
            free(s);
        }
        else {
            s->older = orphans;
            orphans = s;
        }
    }
    pool_drop_directory(dir);
    return orphans;
}
