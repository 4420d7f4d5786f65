/* Which segment an address lies in: an array sorted by address, searched by halving.
 *
 * Spans never overlap, since each is a mapping of its own.  A few ten thousand entries at
 * most (the kernel bounds mappings), so inserting by memmove costs microseconds.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static segment **spans;
static size_t used, room;

/* Index of the first span that starts after `address`. */
static size_t
upper_bound(const char *address)
{
    size_t low = 0, high = used;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (spans[middle]->start <= address) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return low;
}

int
span_insert(segment *s)
{
    if (used == room) {
        size_t more = room ? 2 * room : 64;
        segment **grown = realloc(spans, more * sizeof *spans);
        if (grown == NULL) {
            return -ENOMEM;
        }
        spans = grown;
        room = more;
    }
    size_t at = upper_bound(s->start);
    memmove(spans + at + 1, spans + at, (used - at) * sizeof *spans);
    spans[at] = s;
    used++;
    return 0;
}

void
span_remove(const segment *s)
{
    size_t after = upper_bound(s->start);
    if (after > 0 && spans[after - 1] == s) {
        memmove(spans + after - 1, spans + after, (used - after) * sizeof *spans);
        used--;
    }
}

segment *
span_find(const void *address)
{
    size_t after = upper_bound(address);
    if (after == 0) {
        return NULL;
    }
    segment *s = spans[after - 1];
    return (const char *)address < s->start + s->size ? s : NULL;
}

size_t
span_count(void)
{
    return used;
}

segment *
span_at(size_t index)
{
    return spans[index];
}
