/* NumPy's allocation routines (NEP 49): large arrays are born in segments, and all others
 * go to NumPy's own routines.
 *
 * NumPy holds the GIL when it calls these (it finds them through a capsule).  What may take
 * milliseconds is done without it.
 */
#include "allocator.h"
#include "core.h"

#include <stdint.h>
#include <string.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

static PyDataMemAllocator *numpys;

/* Segments start at a page, and what the C library's allocator gives practically never
 * does: so for small arrays this test is the whole cost of being asked. */
static bool
may_be_segment(const void *start)
{
    return start != NULL && (uintptr_t)start % 4096 == 0;
}

static void *
allocate(void *context, size_t size)
{
    (void)context;
    if (size >= pool_threshold()) {
        segment *s = pool_take(size, true);
        if (s == NULL) { /* none is warm: making one takes a while */
            PyThreadState *thread = PyEval_SaveThread();
            s = pool_take(size, false);
            PyEval_RestoreThread(thread);
        }
        if (s != NULL) {
            return s->start;
        }
    }
    return numpys->malloc(numpys->ctx, size);
}

/* np.zeros promises pages that cost nothing until they are touched, and a segment's pages
 * are there from the start.  So a zeroed array takes a segment only if a warm one is free,
 * which costs no new memory; clearing it takes less than the page faults it saves. */
static void *
allocate_zeroed(void *context, size_t count, size_t size)
{
    (void)context;
    size_t bytes;
    if (!__builtin_mul_overflow(count, size, &bytes) && bytes >= pool_threshold()) {
        segment *s = pool_take(bytes, true);
        if (s != NULL) {
            char *start = s->start;
            PyThreadState *thread = PyEval_SaveThread();
            memset(start, 0, bytes);
            PyEval_RestoreThread(thread);
            return start;
        }
    }
    return numpys->calloc(numpys->ctx, count, size);
}

static void
release(void *context, void *start, size_t size)
{
    (void)context;
    if (may_be_segment(start) && pool_give_back(start)) {
        return;
    }
    numpys->free(numpys->ctx, start, size);
}

static void *
resize(void *context, void *start, size_t size)
{
    size_t length = 0;
    if (may_be_segment(start) && pool_resize(start, size, &length)) {
        return start;
    }
    if (length == 0) {
        return numpys->realloc(numpys->ctx, start, size);
    }
    void *moved = allocate(context, size);
    if (moved != NULL) {
        memcpy(moved, start, size < length ? size : length);
        release(context, start, length);
    }
    return moved;
}

static PyDataMem_Handler handler = {
    .name = "xshm",
    .version = 1,
    .allocator = {
        .ctx = NULL,
        .malloc = allocate,
        .calloc = allocate_zeroed,
        .realloc = resize,
        .free = release,
    },
};

int
allocator_init(void)
{
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    PyDataMem_Handler *theirs = PyCapsule_GetPointer(PyDataMem_DefaultHandler, "mem_handler");
    if (theirs == NULL) {
        return -1;
    }
    numpys = &theirs->allocator;
    return 0;
}

PyObject *
allocator_handler(void)
{
    return PyCapsule_New(&handler, "mem_handler", NULL);
}

PyObject *
allocator_default_handler(void)
{
    return Py_NewRef(PyDataMem_DefaultHandler);
}

/* Set NumPy's handler in the current context; returns the one before. */
PyObject *
allocator_set_handler(PyObject *wanted)
{
    return PyDataMem_SetHandler(wanted);
}

PyObject *
allocator_get_handler(void)
{
    return PyDataMem_GetHandler();
}
