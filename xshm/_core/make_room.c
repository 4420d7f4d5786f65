/* Room for a new file: own idle segments are given up, others are asked and waited for. */
#include "pool.h"

#include <errno.h>
#include <time.h>

#define PATIENCE (500 * XSHM_MILLISECOND) /* for others to give room */
#define IN_USE (1000 * XSHM_MILLISECOND)  /* what is idle for longer is in use no more */

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
        pthread_mutex_lock(&pool.lock);
        segment *s = idle_evict_one(before);
        pool.counts.given_bytes += s == NULL ? 0 : s->size;
        pool_tell_idle();
        int own = s == NULL ? -1 : pool_hold_directory(); /* `dir`, if the pool is still that one */
        pthread_mutex_unlock(&pool.lock);
        if (s == NULL) {
            break;
        }
        given += s->size;
        pool_discard(own, s);
        pool_drop_directory(own);
    }
    return given;
}

/* Somebody else may have asked for room: nobody is forced, but all look here whenever they
 * make a segment or free an array, and workers ten times a second. */
size_t
pool_give_room(void)
{
    size_t size, given = 0;
    pthread_mutex_lock(&pool.lock);
    int dir = pool_hold_directory();
    pthread_mutex_unlock(&pool.lock);
    if (dir >= 0 && room_was_asked(dir, &size)) {
        given = give_room(dir, size);
    }
    pool_drop_directory(dir);
    return given;
}

void
pool_look_whether_room_is_wanted(void)
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
    if (now < __atomic_load_n(&pool.wait_again, __ATOMIC_RELAXED)) {
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
    __atomic_store_n(&pool.wait_again, now + 10 * PATIENCE, __ATOMIC_RELAXED);
    return false;
}

/* See to it that there is room for `size` more bytes: own idle segments go first, then others
 * are asked for theirs.  Looking first keeps a hopeless reservation from filling what is left,
 * and taking it from others, before it fails. */
int
pool_make_room_in(int dir, size_t size, bool patient)
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
    pthread_mutex_lock(&pool.lock);
    int dir = pool_hold_directory();
    int error = dir < 0 && pool.directory >= 0 ? -EMFILE : 0;
    pthread_mutex_unlock(&pool.lock);
    if (dir >= 0) {
        error = pool_make_room_in(dir, size, true);
        pool_drop_directory(dir);
    }
    return error;
}
