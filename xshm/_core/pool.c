/* All segments of this process: recycled warm, bounded, right after fork.
 *
 * One lock guards everything here and the table of spans.  It is held for microseconds:
 * what takes longer (making a segment, copying, unmapping) happens between two holds, on a
 * segment that no list knows meanwhile and on a duplicate of the directory's descriptor,
 * so that closing the pool cannot pull it away.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE (500 * XSHM_MILLISECOND) /* for others to give room */
#define IN_USE (1000 * XSHM_MILLISECOND)  /* what is idle for longer is in use no more */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int directory = -1; /* -1: the pool is closed */
static char owner[XSHM_NAME_SIZE / 2];
static uint64_t opening;      /* counts pool_open: which segments are this pool's */
static uint64_t last_number;  /* of the segments made: a name is never used twice */
static pool_limits limits;
static size_t budget = SIZE_MAX; /* bound on live and idle bytes together... */
static size_t spare;             /* ...but so many idle ones may be kept in any case */
static pool_counts counts;
static uint64_t wait_again; /* for room: earlier is too early */

/* ---- the life of a segment ---- */

/* A new record with a name of its own; its file is not made yet. */
static segment *
new_segment(size_t size)
{
    if (counts.mappings + XSHM_MAPPINGS_PER_SEGMENT > limits.mappings) {
        counts.refused++;
        counts.refused_because = ENOMEM;
        return NULL;
    }
    segment *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->state = SEGMENT_IDLE;
        s->pool = opening;
        s->size = size;
        snprintf(s->name, sizeof s->name, "%s.%llx.segment", owner,
                 (unsigned long long)++last_number);
        counts.mappings += XSHM_MAPPINGS_PER_SEGMENT;
    }
    return s;
}

static void
forget(segment *s)
{
    pthread_mutex_lock(&lock);
    counts.mappings -= s->state == SEGMENT_LEASED ? 1 : XSHM_MAPPINGS_PER_SEGMENT;
    pthread_mutex_unlock(&lock);
    free(s);
}

static void
discard(int dir, segment *s)
{
    if (dir >= 0 && s->pool != 0) {
        segment_unlink(dir, s);
    }
    segment_unmap(s);
    forget(s);
}

static int
own_directory(void)
{
    return directory < 0 ? -1 : fcntl(directory, F_DUPFD_CLOEXEC, 0);
}

static size_t
discard_all(int dir, segment *chain)
{
    size_t bytes = 0;
    while (chain != NULL) {
        segment *next = chain->older;
        bytes += chain->size;
        discard(dir, chain);
        chain = next;
    }
    return bytes;
}

size_t
pool_trim(size_t keep)
{
    pthread_mutex_lock(&lock);
    int dir = own_directory();
    segment *evicted = idle_evict(keep, limits.waiting);
    pthread_mutex_unlock(&lock);
    size_t bytes = discard_all(dir, evicted);
    if (dir >= 0) {
        close(dir);
    }
    return bytes;
}

/* How many idle bytes may be kept, once `more` bytes are live.  Callers hold the lock. */
static size_t
may_keep(size_t more)
{
    size_t live = counts.live_bytes + more;
    size_t left = budget > live ? budget - live : 0;
    if (left < spare) {
        left = spare;
    }
    return left < limits.keep ? left : limits.keep;
}

/* Put a segment without an array back: to the free ones, or to those that wait. */
static void
make_idle(segment *s, bool handed_out)
{
    int dir = -1;
    segment *evicted = NULL;
    s->state = SEGMENT_IDLE;
    pthread_mutex_lock(&lock);
    if (s->pool != opening || directory < 0) { /* the pool was closed meanwhile */
        pthread_mutex_unlock(&lock);
        discard(-1, s);
        return;
    }
    size_t keep = may_keep(0);
    if (s->size > keep) { /* keeping it would push out all others, and then itself */
        s->older = NULL;
        evicted = s;
    }
    else {
        idle_push(s, handed_out);
        evicted = idle_evict(keep, limits.waiting);
    }
    if (evicted != NULL) {
        dir = own_directory();
    }
    pthread_mutex_unlock(&lock);
    discard_all(dir, evicted);
    if (dir >= 0) {
        close(dir);
    }
}

/* ---- room ---- */

/* Give idle segments up, the one that has been idle longest first: all that it takes until
 * `size` bytes are free.  Until room is not short any more only those go that are not in use:
 * what is freed and used again all the time would have to be made again all the time. */
static size_t
give_room(int dir, size_t size)
{
    size_t given = 0;
    free_room left;
    while (room_left(dir, &left) == 0 && left.free < (size > left.enough ? size : left.enough)) {
        uint64_t before = left.free < size ? UINT64_MAX : monotonic_time() - IN_USE;
        pthread_mutex_lock(&lock);
        segment *s = idle_evict_one(before);
        counts.given_bytes += s == NULL ? 0 : s->size;
        int own = s == NULL ? -1 : own_directory(); /* `dir`, if the pool is still that one */
        pthread_mutex_unlock(&lock);
        if (s == NULL) {
            break;
        }
        given += s->size;
        discard(own, s);
        if (own >= 0) {
            close(own);
        }
    }
    return given;
}

/* Somebody else may have asked for room: nobody is forced, but all look here whenever they
 * make a segment or free an array, and workers ten times a second. */
size_t
pool_give_room(void)
{
    size_t size, given = 0;
    pthread_mutex_lock(&lock);
    int dir = own_directory();
    pthread_mutex_unlock(&lock);
    if (dir >= 0) {
        if (room_was_asked(dir, &size)) {
            given = give_room(dir, size);
        }
        close(dir);
    }
    return given;
}

static void
look_whether_room_is_wanted(void)
{
    if (room_is_time_to_look()) {
        pool_give_room();
    }
}

/* Wait until others have given room, not for long, and not again soon if it was in vain. */
static bool
wait_for_room(int dir, size_t size)
{
    const struct timespec pause = {.tv_nsec = 2 * XSHM_MILLISECOND};
    uint64_t now = monotonic_time();
    if (now < __atomic_load_n(&wait_again, __ATOMIC_RELAXED)) {
        return false;
    }
    for (uint64_t until = now + PATIENCE; now < until; now = monotonic_time()) {
        free_room left;
        nanosleep(&pause, NULL);
        if (room_left(dir, &left) != 0) {
            return false;
        }
        if (left.free >= size) {
            return true;
        }
        room_ask(dir, size); /* somebody else may have asked for less */
    }
    __atomic_store_n(&wait_again, now + 10 * PATIENCE, __ATOMIC_RELAXED);
    return false;
}

/* See to it that there is room for `size` more bytes: own idle segments go first, then others
 * are asked for theirs.  Looking first keeps a hopeless reservation from filling what is left,
 * and taking it from others, before it fails. */
static int
make_room(int dir, size_t size, bool patient)
{
    free_room left;
    int error = room_left(dir, &left);
    if (error == 0 && left.all < size) { /* nobody's are enough */
        return -ENOSPC;
    }
    if (error == 0 && left.free < size && give_room(dir, size) > 0) {
        error = room_left(dir, &left);
    }
    if (error != 0 || (left.free >= size && left.free - size >= left.enough)) {
        return error;
    }
    room_ask(dir, left.free < size ? size : 0);
    return left.free >= size || (patient && wait_for_room(dir, size)) ? 0 : -ENOSPC;
}

/* For a file that is not a segment. */
int
pool_make_room(size_t size)
{
    pthread_mutex_lock(&lock);
    int dir = own_directory();
    int error = dir < 0 && directory >= 0 ? -EMFILE : 0;
    pthread_mutex_unlock(&lock);
    if (dir >= 0) {
        error = make_room(dir, size, true);
        close(dir);
    }
    return error;
}

static void
note_refusal(int error)
{
    pthread_mutex_lock(&lock);
    counts.refused++;
    counts.refused_because = -error;
    pthread_mutex_unlock(&lock);
}

/* Get an idle segment's file, or make it; where there is no room, idle ones go first. */
static int
make_room_and(int dir, segment *s, bool fresh, bool huge, const char *bytes, size_t length,
              bool patient)
{
    int error = fresh ? make_room(dir, s->size, patient) : 0;
    for (int attempt = 0; error == 0; attempt++) {
        if (bytes != NULL) {
            error = segment_fill(dir, s, fresh, bytes, length);
        }
        else {
            error = fresh ? segment_create(dir, s, huge) : segment_warm(dir, s, huge);
        }
        /* Somebody was faster, or it is files that there are too many of. */
        if (error != -ENOSPC || attempt == 1 || pool_trim(0) == 0) {
            break;
        }
        error = 0;
    }
    return error;
}

/* ---- for the allocator ---- */

size_t
pool_threshold(void)
{
    return __atomic_load_n(&limits.threshold, __ATOMIC_RELAXED);
}

/* A segment for an array of `length` bytes, warm and mapped, or NULL if there is no room (or,
 * with `only_warm`, none that is ready).  Its bytes are whatever they were. */
segment *
pool_take(size_t length, bool only_warm)
{
    if (length == 0 || length > PTRDIFF_MAX) {
        return NULL;
    }
    if (!only_warm) {
        look_whether_room_is_wanted();
    }
    size_t size = size_class(length);
    pthread_mutex_lock(&lock);
    if (directory < 0) {
        pthread_mutex_unlock(&lock);
        return NULL;
    }
    segment *s = idle_take(directory, size, only_warm);
    bool fresh = s == NULL;
    segment *evicted = NULL;
    if (s == NULL && !only_warm) {
        s = new_segment(size);
        evicted = idle_evict(may_keep(size), limits.waiting);
    }
    bool huge = limits.huge;
    bool ready = s != NULL && s->shared != NULL && s->size == size;
    int dir = (s == NULL || ready) && evicted == NULL ? -1 : own_directory();
    pthread_mutex_unlock(&lock);
    discard_all(dir, evicted);
    if (s == NULL) {
        if (dir >= 0) {
            close(dir);
        }
        return NULL;
    }
    int error = ready || dir >= 0 ? 0 : -EMFILE;
    if (error == 0 && s->size > size) {
        error = segment_shrink(dir, s, size);
    }
    if (error == 0 && s->shared == NULL) {
        error = make_room_and(dir, s, fresh, huge, NULL, 0, false);
    }
    if (error == 0) {
        segment_use(s, length);
    }
    else {
        discard(fresh ? -1 : dir, s);
        note_refusal(error);
    }
    if (dir >= 0) {
        close(dir);
    }
    if (error != 0) {
        return NULL;
    }
    pthread_mutex_lock(&lock);
    s->start = s->shared;
    s->state = SEGMENT_OPEN;
    bool known = span_insert(s) == 0;
    if (known) {
        counts.live_segments++;
        counts.live_bytes += s->size;
        *(fresh ? &counts.created : &counts.recycled) += 1;
    }
    pthread_mutex_unlock(&lock);
    if (!known) {
        s->start = NULL;
        make_idle(s, false);
        return NULL;
    }
    return s;
}

/* The array at `start` is gone.  False if there is no segment there. */
bool
pool_give_back(void *start)
{
    pthread_mutex_lock(&lock);
    segment *s = span_find(start);
    if (s == NULL || s->start != start) {
        pthread_mutex_unlock(&lock);
        return false;
    }
    span_remove(s);
    bool inherited = s->state == SEGMENT_LEASED;
    *(inherited ? &counts.leased_segments : &counts.live_segments) -= 1;
    *(inherited ? &counts.leased_bytes : &counts.live_bytes) -= s->size;
    pthread_mutex_unlock(&lock);
    if (inherited) {
        discard(-1, s);
        return true;
    }
    bool handed_out = s->state == SEGMENT_SEALED;
    if (handed_out) { /* and with this mapping goes our own shared lock */
        munmap(s->start, s->size);
    }
    s->start = NULL;
    make_idle(s, handed_out);
    look_whether_room_is_wanted();
    return true;
}

/* Make the array at `start` one of `size` bytes where it is, if it has not been handed out and
 * keeps half of its segment.  `*length` is what it has now; 0 if it is in no segment. */
bool
pool_resize(const void *start, size_t size, size_t *length)
{
    pthread_mutex_lock(&lock);
    segment *s = span_find(start);
    *length = s != NULL && s->start == start ? s->used : 0;
    bool fits = *length > 0 && s->state == SEGMENT_OPEN && size <= s->size && size >= s->size / 2;
    if (fits) {
        segment_use(s, size);
    }
    pthread_mutex_unlock(&lock);
    return fits;
}

/* ---- hand-over ---- */

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
    pthread_mutex_lock(&lock);
    segment *s = find_range(start, length);
    if (s != NULL) {
        *found = *s;
    }
    pthread_mutex_unlock(&lock);
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
    pthread_mutex_lock(&lock);
    segment *s = find_range(start, length);
    if (s == NULL || directory < 0) {
        error = -ENOENT;
    }
    else if (s->state == SEGMENT_OPEN) {
        sealed_before = false;
        error = segment_seal(directory, s);
        counts.sealed += error == 0;
    }
    int dir = -1;
    if (error == 0) {
        *shared = *s;
        dir = own_directory();
    }
    pthread_mutex_unlock(&lock);
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
    close(dir);
    return error;
}

/* Copy bytes from ordinary memory into a segment and make `token` a name of it. */
int
pool_copy_in(const char *bytes, size_t length, const char *token, bool patient, segment *copied)
{
    if (length == 0) {
        return -EINVAL;
    }
    look_whether_room_is_wanted();
    size_t size = size_class(length);
    pthread_mutex_lock(&lock);
    if (directory < 0) {
        pthread_mutex_unlock(&lock);
        return -ENOENT;
    }
    segment *s = idle_take(directory, size, false);
    bool fresh = s == NULL;
    if (fresh) {
        s = new_segment(size);
    }
    bool huge = limits.huge;
    int dir = own_directory();
    pthread_mutex_unlock(&lock);
    if (s == NULL) {
        if (dir >= 0) {
            close(dir);
        }
        return -ENOMEM;
    }
    int error = dir < 0 ? -EMFILE : 0;
    if (error == 0 && s->size > size) {
        error = segment_shrink(dir, s, size);
    }
    if (error == 0 && s->shared != NULL) {
        memcpy(s->shared, bytes, length);
        segment_use(s, length);
    }
    else if (error == 0) {
        error = make_room_and(dir, s, fresh, huge, bytes, length, patient);
    }
    if (error != 0) {
        discard(fresh ? -1 : dir, s);
        note_refusal(error);
    }
    else {
        error = segment_link(dir, s, token);
        *copied = *s;
        pthread_mutex_lock(&lock);
        *(fresh ? &counts.created : &counts.recycled) += 1;
        pthread_mutex_unlock(&lock);
        make_idle(s, true);
    }
    if (dir >= 0) {
        close(dir);
    }
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
    pthread_mutex_lock(&lock);
    int dir = own_directory();
    *error = dir >= 0 ? 0 : directory < 0 ? -ENOENT : -EMFILE;
    bool mapped = counts.mappings < limits.mappings;
    counts.mappings += mapped;
    s->state = mapped ? SEGMENT_LEASED : SEGMENT_COPIED;
    pthread_mutex_unlock(&lock);
    if (dir >= 0) {
        *error = segment_lease(dir, s, token, offset, length, mapped, skipped);
        close(dir);
    }
    if (*error == 0 && mapped) {
        pthread_mutex_lock(&lock);
        *error = span_insert(s);
        if (*error == 0) {
            counts.leased_segments++;
            counts.leased_bytes += s->size;
        }
        pthread_mutex_unlock(&lock);
    }
    if (*error == 0) {
        return s;
    }
    if (mapped) {
        discard(-1, s);
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
    pthread_mutex_lock(&lock);
    span_remove(s);
    counts.leased_segments--;
    counts.leased_bytes -= s->size;
    pthread_mutex_unlock(&lock);
    discard(-1, s);
}

/* Leases of segments that have no name any more, as their owner has ended or given them up:
 * copies, chained by `older`, for the caller to free. */
segment *
pool_orphans(void)
{
    segment *leases = NULL, *orphans = NULL;
    pthread_mutex_lock(&lock);
    int dir = own_directory();
    for (size_t i = 0; dir >= 0 && i < span_count(); i++) {
        const segment *s = span_at(i);
        segment *copy = s->state == SEGMENT_LEASED ? malloc(sizeof *copy) : NULL;
        if (copy != NULL) {
            *copy = *s;
            copy->older = leases;
            leases = copy;
        }
    }
    pthread_mutex_unlock(&lock);
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
    if (dir >= 0) {
        close(dir);
    }
    return orphans;
}

/* ---- opening, closing, fork ---- */

int
pool_open(int dir, const char *name, const pool_limits *wanted)
{
    if (strlen(name) >= sizeof owner) {
        return -ENAMETOOLONG;
    }
    pthread_mutex_lock(&lock);
    int error = directory >= 0 ? -EBUSY : 0;
    if (error == 0) {
        directory = fcntl(dir, F_DUPFD_CLOEXEC, 0);
        error = directory < 0 ? -errno : 0;
    }
    if (error == 0) {
        snprintf(owner, sizeof owner, "%s", name);
        limits = *wanted;
        budget = SIZE_MAX;
        spare = 0;
        opening++;
        size_t size;
        room_was_asked(directory, &size); /* before us: not of us */
        __atomic_store_n(&wait_again, 0, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    return error;
}

/* Live arrays stay as they are, their files without a name; idle segments are freed. */
void
pool_close(void)
{
    pthread_mutex_lock(&lock);
    int dir = directory;
    directory = -1;
    limits.threshold = SIZE_MAX;
    segment *idle = idle_evict(0, 0);
    for (size_t i = 0; i < span_count(); i++) {
        segment *s = span_at(i);
        if (s->pool == opening && s->state != SEGMENT_LEASED) {
            segment_unlink(dir, s);
            s->pool = 0;
        }
    }
    pthread_mutex_unlock(&lock);
    discard_all(dir, idle);
    if (dir >= 0) {
        close(dir);
    }
}

bool
pool_is_open(void)
{
    pthread_mutex_lock(&lock);
    bool open = directory >= 0;
    pthread_mutex_unlock(&lock);
    return open;
}

void
pool_set_limits(const pool_limits *wanted)
{
    pthread_mutex_lock(&lock);
    if (directory >= 0) {
        limits = *wanted;
    }
    pthread_mutex_unlock(&lock);
    pool_trim(wanted->keep);
}

/* A bound on live and idle bytes together, as far as idle ones beyond `kept` can keep it. */
void
pool_set_budget(size_t bytes, size_t kept)
{
    pthread_mutex_lock(&lock);
    budget = bytes;
    spare = kept;
    size_t keep = may_keep(0);
    pthread_mutex_unlock(&lock);
    pool_trim(keep);
}

pool_counts
pool_count(void)
{
    pthread_mutex_lock(&lock);
    pool_counts now = counts;
    now.idle = idle_count();
    pthread_mutex_unlock(&lock);
    return now;
}

/* Invariant 7, "after a fork the child owns nothing and neither side's writes reach the
 * other": every array is sealed before the fork, so parent and child both see private
 * mappings, whose shared lock (one for both) keeps the parent from recycling the segment
 * while the child has it. */
static void
before_fork(void)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < span_count(); i++) {
        segment *s = span_at(i);
        if (s->state == SEGMENT_OPEN && segment_seal(directory, s) != 0
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
    pthread_mutex_unlock(&lock);
}

static void
after_fork_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    for (size_t i = 0; i < span_count(); i++) {
        segment *s = span_at(i);
        if (s->state == SEGMENT_OPEN || s->state == SEGMENT_SEALED) {
            if (s->shared != NULL && s->shared != s->start) {
                munmap(s->shared, s->size);
            }
            s->shared = NULL;
            s->pool = 0;
            s->state = SEGMENT_LEASED;
            counts.live_segments--;
            counts.live_bytes -= s->size;
            counts.leased_segments++;
            counts.leased_bytes += s->size;
            counts.mappings -= XSHM_MAPPINGS_PER_SEGMENT - 1;
        }
    }
    int dir = directory;
    directory = -1;
    limits.threshold = SIZE_MAX;
    discard_all(-1, idle_evict(0, 0));
    if (dir >= 0) {
        close(dir);
    }
    pagemap_after_fork();
}

int
pool_install_fork_handlers(void)
{
    limits.threshold = SIZE_MAX;
    return -pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
