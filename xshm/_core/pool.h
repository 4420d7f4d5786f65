/* The pool's state, and what the files that work on it use of each other. */
#ifndef XSHM_POOL_H
#define XSHM_POOL_H

#include "core.h"

#include <pthread.h>

/* One lock guards all of it and the tables of spans.c and idle.c.  It is held for microseconds:
 * what takes longer (making a segment, copying, unmapping) happens between two holds, on a
 * segment that no list knows meanwhile and on a duplicate of the directory's descriptor,
 * so that closing the pool cannot pull it away. */
struct pool {
    pthread_mutex_t lock;
    int directory; /* -1: the pool is closed */
    char owner[XSHM_NAME_SIZE / 2];
    uint64_t opening;     /* counts pool_open: which segments are this pool's */
    uint64_t last_number; /* of the segments made: a name is never used twice */
    pool_limits limits;
    size_t budget, most;  /* bounds on live and idle bytes together: see pool_set_budget */
    pool_counts counts;
    uint64_t wait_again;  /* for room: earlier is too early */
    size_t told;          /* others know of so many idle bytes: see pool_tell_idle */
};

extern struct pool pool;

/* ---- pool.c ---- */
int pool_hold_directory(void);
void pool_drop_directory(int dir);
size_t pool_may_keep(size_t more);
segment *pool_new_segment(size_t size);
void pool_discard(int dir, segment *s);
size_t pool_discard_all(int dir, segment *chain);
void pool_make_idle(segment *s, bool handed_out);
void pool_tell_idle(void);

/* ---- make_room.c ---- */
void pool_look_whether_room_is_wanted(void);
int pool_make_room_in(int dir, size_t size, bool patient);

/* ---- arrays.c ---- */
enum effort {
    EFFORT_WARM, /* only a segment that is mapped and of just this size */
    EFFORT_MAKE, /* any idle one, or a new one if there is room */
    EFFORT_WAIT, /* the same, and others get time to give room */
};

/* A segment that no list knows. */
typedef struct {
    segment *segment;
    bool fresh;    /* made for this, not recycled */
    int directory; /* held, if it was needed: to be dropped */
} prepared;

int pool_prepare(size_t length, const char *bytes, enum effort effort, prepared *p);

#endif
