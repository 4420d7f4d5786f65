/* A segment for each large array: recycled or made, and idle again when the array is gone. */
#include "pool.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static void
note_refusal(int error)
{
    pthread_mutex_lock(&pool.lock);
    pool.counts.refused++;
    pool.counts.refused_because = -error;
    pthread_mutex_unlock(&pool.lock);
}

/* Map the segment's file or, with `bytes`, write them into it; a fresh one is made first.
 * Where there is no room, idle segments go first. */
static int
get_pages(const prepared *p, bool huge, size_t length, const char *bytes, bool patient)
{
    int dir = p->directory;
    segment *s = p->segment;
    int error = p->fresh ? pool_make_room_in(dir, s->size, patient) : 0;
    for (int attempt = 0; error == 0; attempt++) {
        if (bytes != NULL) {
            error = segment_fill(dir, s, p->fresh, bytes, length);
        }
        else {
            error = p->fresh ? segment_create(dir, s, huge) : segment_warm(dir, s, huge);
        }
        /* Somebody was faster, or it is files that there are too many of. */
        if (error != -ENOSPC || attempt == 1 || pool_trim(0) == 0) {
            break;
        }
        error = 0;
    }
    return error;
}

/* A segment for `length` bytes, warm and mapped, its bytes whatever they were; with `bytes`, it
 * holds these, mapped or not.  -ENOENT: the pool is closed; -ENOMEM: `effort` finds none. */
int
pool_prepare(size_t length, const char *bytes, enum effort effort, prepared *p)
{
    if (length == 0 || length > PTRDIFF_MAX) {
        return -EINVAL;
    }
    bool only_warm = effort == EFFORT_WARM;
    if (!only_warm) {
        pool_look_whether_room_is_wanted();
    }
    size_t size = size_class(length);
    segment *evicted = NULL;
    pthread_mutex_lock(&pool.lock);
    if (pool.directory < 0) {
        pthread_mutex_unlock(&pool.lock);
        return -ENOENT;
    }
    segment *s = idle_take(pool.directory, size, only_warm);
    p->fresh = s == NULL;
    if (s == NULL && !only_warm) {
        s = pool_new_segment(size);
        if (bytes == NULL) { /* it will be live; a copy is idle at once, and counted as such */
            evicted = idle_evict(pool_may_keep(size), pool.limits.waiting);
        }
    }
    pool_tell_idle();
    bool huge = pool.limits.huge;
    bool ready = s != NULL && s->shared != NULL && s->size == size && bytes == NULL;
    p->segment = s;
    p->directory = (s == NULL || ready) && evicted == NULL ? -1 : pool_hold_directory();
    pthread_mutex_unlock(&pool.lock);
    pool_discard_all(p->directory, evicted);
    if (s == NULL) {
        pool_drop_directory(p->directory);
        return -ENOMEM;
    }
    int error = ready || p->directory >= 0 ? 0 : -EMFILE;
    if (error == 0 && s->size > size) {
        error = segment_shrink(p->directory, s, size);
    }
    if (error == 0 && s->shared == NULL) {
        error = get_pages(p, huge, length, bytes, effort == EFFORT_WAIT);
    }
    else if (error == 0 && bytes != NULL) {
        memcpy(s->shared, bytes, length);
    }
    if (error == 0) {
        segment_use(s, length);
        return 0;
    }
    pool_discard(p->directory, s);
    pool_drop_directory(p->directory);
    note_refusal(error);
    return error;
}

/* A segment for an array of `length` bytes, mapped at its `start`, or NULL if there is no room
 * (or, with `only_warm`, none that is ready). */
segment *
pool_take(size_t length, bool only_warm)
{
    prepared p;
    if (pool_prepare(length, NULL, only_warm ? EFFORT_WARM : EFFORT_MAKE, &p) != 0) {
        return NULL;
    }
    pool_drop_directory(p.directory);
    segment *s = p.segment;
    pthread_mutex_lock(&pool.lock);
    s->start = s->shared;
    s->state = SEGMENT_OPEN;
    bool known = span_insert(s) == 0;
    if (known) {
        pool.counts.live_segments++;
        pool.counts.live_bytes += s->size;
        *(p.fresh ? &pool.counts.created : &pool.counts.recycled) += 1;
    }
    pthread_mutex_unlock(&pool.lock);
    if (!known) {
        s->start = NULL;
        pool_make_idle(s, false);
        return NULL;
    }
    return s;
}

/* The array at `start` is gone.  False if there is no segment there. */
bool
pool_give_back(void *start)
{
    pthread_mutex_lock(&pool.lock);
    segment *s = span_find(start);
    if (s == NULL || s->start != start) {
        pthread_mutex_unlock(&pool.lock);
        return false;
    }
    span_remove(s);
    bool inherited = s->state == SEGMENT_LEASED;
    *(inherited ? &pool.counts.leased_segments : &pool.counts.live_segments) -= 1;
    *(inherited ? &pool.counts.leased_bytes : &pool.counts.live_bytes) -= s->size;
    pthread_mutex_unlock(&pool.lock);
    if (inherited) {
        pool_discard(-1, s);
        return true;
    }
    bool handed_out = s->state == SEGMENT_SEALED;
    if (handed_out) { /* and with this mapping goes our own shared lock */
        munmap(s->start, s->size);
    }
    s->start = NULL;
    pool_make_idle(s, handed_out);
    pool_look_whether_room_is_wanted();
    return true;
}

/* Make the array at `start` one of `size` bytes where it is, if it has not been handed out and
 * keeps half of its segment.  `*length` is what it has now; 0 if it is in no segment. */
bool
pool_resize(const void *start, size_t size, size_t *length)
{
    pthread_mutex_lock(&pool.lock);
    segment *s = span_find(start);
    *length = s != NULL && s->start == start ? s->used : 0;
    bool fits = *length > 0 && s->state == SEGMENT_OPEN && size <= s->size && size >= s->size / 2;
    if (fits) {
        segment_use(s, size);
    }
    pthread_mutex_unlock(&pool.lock);
    return fits;
}
