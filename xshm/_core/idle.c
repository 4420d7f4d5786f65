/* Segments without an array: the free ones, by size class, and those that wait for others. */
#include "core.h"

#define CLASSES_PER_DOUBLING 8 /* so at most an eighth of a segment is unused */
#define CLASSES (64 * CLASSES_PER_DOUBLING)
#define PAGE ((size_t)4096)

struct list {
    segment *oldest, *newest;
};

static struct list free_lists[CLASSES]; /* ready, by size class */
static struct list waiting;             /* handed out once: others may hold leases */
static idle_counts counts;
static uint64_t newest; /* when the last one became idle */

static unsigned
log2_of(size_t size)
{
    return 63U - (unsigned)__builtin_clzll(size);
}

/* The size of the segment for an array of `size` bytes. */
size_t
size_class(size_t size)
{
    size_t granule = ((size_t)1 << log2_of(size)) / CLASSES_PER_DOUBLING;
    if (granule < PAGE) {
        granule = PAGE;
    }
    return (size + granule - 1) / granule * granule;
}

/* Which size class a segment of `size` bytes is of: 0 is the smallest. */
static unsigned
class_of(size_t size)
{
    unsigned power = log2_of(size);
    return power * CLASSES_PER_DOUBLING + ((size >> (power - 3)) & (CLASSES_PER_DOUBLING - 1));
}

static struct list *
free_list(size_t size)
{
    return &free_lists[class_of(size)];
}

static void
list_push(struct list *list, segment *s)
{
    uint64_t now = recent_time();
    s->idle_since = newest = now > newest ? now : newest + 1;
    s->newer = NULL;
    s->older = list->newest;
    *(list->newest ? &list->newest->newer : &list->oldest) = s;
    list->newest = s;
}

static void
list_remove(struct list *list, segment *s)
{
    *(s->newer ? &s->newer->older : &list->newest) = s->older;
    *(s->older ? &s->older->newer : &list->oldest) = s->newer;
    s->newer = s->older = NULL;
}

static void
remove_free(segment *s)
{
    list_remove(free_list(s->size), s);
    counts.free_segments--;
    counts.free_bytes -= s->size;
}

static void
remove_waiting(segment *s)
{
    list_remove(&waiting, s);
    counts.waiting_segments--;
    counts.waiting_bytes -= s->size;
}

/* Others may hold leases of a segment that was handed out; else it is ready at once. */
void
idle_push(segment *s, bool handed_out)
{
    if (handed_out) {
        list_push(&waiting, s);
        counts.waiting_segments++;
        counts.waiting_bytes += s->size;
    }
    else {
        list_push(free_list(s->size), s);
        counts.free_segments++;
        counts.free_bytes += s->size;
    }
}

/* A segment of one size class that nobody else can see, taken off its list, or NULL. */
static segment *
take_of_class(int directory, unsigned class, bool only_warm)
{
    segment *s = free_lists[class].newest;
    if (s != NULL && (s->shared != NULL || !only_warm)) {
        remove_free(s);
        return s;
    }
    for (s = waiting.oldest; s != NULL; s = s->newer) {
        if (class_of(s->size) == class && (s->shared != NULL || !only_warm)
            && segment_try_reclaim(directory, s) == 0) {
            remove_waiting(s);
            return s;
        }
    }
    return NULL;
}

/* A segment for `size` bytes (a class's size) that nobody else can see, taken off its list;
 * NULL if there is none.  With `only_warm` it is mapped and of just this size.  Else it may
 * be larger, by less than twice: the caller gives the rest back. */
segment *
idle_take(int directory, size_t size, bool only_warm)
{
    unsigned class = class_of(size);
    unsigned last = only_warm ? class : class + CLASSES_PER_DOUBLING - 1;
    segment *s = NULL;
    for (; s == NULL && class <= last; class++) {
        s = take_of_class(directory, class, only_warm);
    }
    return s;
}

/* The segment that has been idle longest; NULL if there is none. */
static segment *
longest_idle(void)
{
    segment *found = waiting.oldest;
    for (size_t i = 0; i < CLASSES; i++) {
        segment *s = free_lists[i].oldest;
        if (s != NULL && (found == NULL || s->idle_since < found->idle_since)) {
            found = s;
        }
    }
    return found;
}

static void
evict(segment *s)
{
    if (s == waiting.oldest) {
        remove_waiting(s);
    }
    else {
        remove_free(s);
    }
}

/* Take segments off the lists until no more than `keep_bytes` are idle and no more than
 * `keep_waiting` segments wait: the one that has been idle longest first.  Returns them
 * chained by `older`. */
segment *
idle_evict(size_t keep_bytes, size_t keep_waiting)
{
    segment *evicted = NULL;
    for (;;) {
        bool crowded = counts.waiting_segments > keep_waiting;
        if (!crowded && counts.free_bytes + counts.waiting_bytes <= keep_bytes) {
            return evicted;
        }
        segment *victim = crowded ? waiting.oldest : longest_idle();
        if (victim == NULL) {
            return evicted;
        }
        evict(victim);
        victim->older = evicted;
        evicted = victim;
    }
}

/* Take the segment that has been idle longest off its list, if it was so before then. */
segment *
idle_evict_one(uint64_t before)
{
    segment *s = longest_idle();
    if (s == NULL || s->idle_since >= before) {
        return NULL;
    }
    evict(s);
    return s;
}

idle_counts
idle_count(void)
{
    return counts;
}
