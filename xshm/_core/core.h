/* The C core of xshm: one process's segments, and nothing of Python but buffers.
 *
 *   spans.c      which segment an address lies in
 *   segment.c    system calls on one segment
 *   written.c    whether a private mapping was written to
 *   room.c       room in the directory, and asking other processes for it
 *   idle.c       segments without an array: the free ones, and those that wait for others
 *   pool.c       all segments of this process: their life, bounds, opening and closing
 *   make_room.c  own idle segments given up for room, and others waited for
 *   arrays.c     a segment for each large array: recycled or made, and idle again
 *   handover.c   bytes handed to other processes, and leases of theirs
 *   fork.c       parent and child: neither's writes reach the other
 *   window.c     a part of any file of the directory, mapped for as long as somebody looks at it
 *   farewell.c   leaving the directory when a signal ends the process
 *   futex.c      waiting for a word of shared memory to change
 *   allocator.c  NumPy's allocation routines (NEP 49), on top of the pool
 *   mapped.c     leases and windows as Python objects
 *   module.c     what Python sees
 *
 * Each file uses only those above it.  What pool.c to fork.c have in common is in pool.h.  The
 * words (segment, token, lease, sealed) and the invariants, quoted by name where code keeps
 * them, are those of docs/design.md.
 */
#ifndef XSHM_CORE_H
#define XSHM_CORE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define XSHM_NAME_SIZE 64 /* longest file name in the directory, with its final zero */

enum segment_state {
    SEGMENT_OPEN,    /* an array of ours lives in it; `start` is shared and writable */
    SEGMENT_SEALED,  /* handed out: `start` is a private copy-on-write mapping */
    SEGMENT_LEASED,  /* somebody else's (or our parent's): private copy-on-write mapping */
    SEGMENT_COPIED,  /* somebody else's, read into ordinary memory */
    SEGMENT_IDLE,    /* no array: free, or waiting for the leases of others to end */
};

/* One mapped range of one file in the directory. */
typedef struct segment {
    enum segment_state state;
    char name[XSHM_NAME_SIZE];
    ino_t inode;
    uint64_t pool;   /* which opening of the pool it belongs to; 0: not ours to recycle */
    char *start;     /* where its array sees the bytes; NULL while idle */
    char *shared;    /* shared writable mapping, kept populated; NULL if there is none */
    size_t size;     /* bytes mapped at `start` */
    size_t used;     /* of ours: behind these bytes the file is zero (invariant 10) */
    off_t offset;    /* of `start` in the file: 0, but for leases */
    struct segment *older, *newer; /* while idle: neighbours in its list */
    uint64_t idle_since;           /* while idle: a recent_time(), of no two the same */
} segment;

/* ---- spans.c: callers hold the pool's lock ---- */
int span_insert(segment *s);
void span_remove(const segment *s);
segment *span_find(const void *address);
size_t span_count(void);
segment *span_at(size_t index);

/* ---- segment.c: each returns 0 or -errno ---- */
#define XSHM_MAPPINGS_PER_SEGMENT 2 /* at most: the array's, and the shared one put aside */

int segment_create(int directory, segment *s, bool huge);
int segment_warm(int directory, segment *s, bool huge);
int segment_fill(int directory, segment *s, bool fresh, const char *bytes, size_t length);
int segment_seal(int directory, segment *s);
int segment_isolate(segment *s);
int segment_try_reclaim(int directory, const segment *s);
int segment_shrink(int directory, segment *s, size_t size);
void segment_use(segment *s, size_t length);
void segment_unmap(segment *s);
void segment_unlink(int directory, const segment *s);
int segment_link(int directory, const segment *s, const char *token);
int segment_lease(int directory, segment *s, const char *token, off_t offset, size_t length,
                  bool mapped, size_t *skipped);

/* ---- written.c ---- */
bool range_was_written(const char *start, size_t length);
void pagemap_after_fork(void);

/* ---- room.c ---- */
#define XSHM_MILLISECOND UINT64_C(1000000) /* in nanoseconds, as all times here */

typedef struct {
    size_t all, free; /* bytes */
    size_t enough;    /* if fewer are free, room is short */
} free_room;

uint64_t monotonic_time(void);
uint64_t recent_time(void);
int room_left(int directory, free_room *r);
void room_ask(int directory, size_t size);
bool room_was_asked(int directory, size_t *size);
bool room_is_time_to_look(void);
void room_tell_idle(int directory, const char *process, size_t bytes);

/* ---- idle.c: callers hold the pool's lock ---- */
typedef struct {
    size_t free_segments, free_bytes;       /* ready for the next array */
    size_t waiting_segments, waiting_bytes; /* others may hold leases */
} idle_counts;

size_t size_class(size_t size);
void idle_push(segment *s, bool handed_out);
segment *idle_take(int directory, size_t size, bool only_warm);
segment *idle_evict(size_t keep, size_t waiting);
segment *idle_evict_one(uint64_t before);
idle_counts idle_count(void);

/* ---- pool.c ---- */
typedef struct {
    size_t threshold; /* smaller arrays are not for the pool, bytes */
    size_t keep;      /* bound on idle bytes */
    size_t waiting;   /* bound on the number of segments waiting for leases to end */
    size_t mappings;  /* bound on mappings */
    bool huge;        /* the directory gives huge pages to who asks */
} pool_limits;

typedef struct {
    size_t live_segments, live_bytes;       /* with an array of ours */
    size_t leased_segments, leased_bytes;   /* of others, held here */
    idle_counts idle;                       /* without an array */
    size_t mappings;
    uint64_t created, recycled, sealed;
    uint64_t given_bytes; /* of idle segments, to a directory that was short of room */
    uint64_t refused;    /* no room, or no mapping left */
    int refused_because; /* errno of the last one refused */
} pool_counts;

int pool_open(int directory, const char *owner, const pool_limits *limits);
void pool_close(void);
bool pool_is_open(void);
void pool_set_limits(const pool_limits *limits);
void pool_set_budget(size_t bytes, size_t most);
size_t pool_threshold(void);
pool_counts pool_count(void);
size_t pool_trim(size_t keep);

/* ---- make_room.c ---- */
size_t pool_give_room(void);
int pool_make_room(size_t size);

/* ---- arrays.c ---- */
segment *pool_take(size_t length, bool only_warm);
bool pool_give_back(void *start);
bool pool_resize(const void *start, size_t size, size_t *length);

/* ---- handover.c ---- */
bool pool_find(const char *start, size_t length, segment *found);
int pool_share(const char *start, size_t length, const char *token, segment *shared);
int pool_copy_in(const char *bytes, size_t length, const char *token, bool patient,
                 segment *copied);
segment *pool_lease(const char *token, const char *name, off_t offset, size_t length,
                    size_t *skipped, int *error);
void pool_drop_lease(segment *s);
segment *pool_orphans(void);

/* ---- fork.c ---- */
int pool_install_fork_handlers(void);

/* ---- window.c: returns 0 or -errno ---- */
typedef struct {
    char *start;   /* of the mapping, at a page's start */
    size_t size;   /* of the mapping */
    size_t skipped; /* bytes of it before those that were asked for */
} window;

int window_map(int file, off_t offset, size_t length, bool shared, window *w);
void window_unmap(window *w);

/* ---- futex.c: each returns 0 or -errno ---- */
int futex_wait(const uint32_t *word, uint32_t seen, double seconds);
int futex_wake(uint32_t *word);

/* ---- farewell.c: returns 0 or -errno ---- */
int farewell_prepare(int directory, const char *owner, const char *process_file);
void farewell_cancel(void);

#endif
