/* What Python sees of the core: the pool, hand-over of buffers, events, the allocator.
 *
 * Policy (names, limits, what to do when something is refused) is Python's: see pool.py,
 * handover.py and allocator.py.
 */
#include "allocator.h"
#include "core.h"
#include "mapped.h"

#include <stdlib.h>

/* ---- hand-over of buffers ---- */

/* Call pool_copy_in or pool_share on a Python buffer: (segment, offset), or NULL with an
 * errno in `*error` (0 if a Python exception is set). */
static PyObject *
hand_over(PyObject *args, bool by_copy, int *error)
{
    PyObject *object;
    const char *token;
    int patient = 0;
    Py_buffer view;
    *error = 0;
    if (!PyArg_ParseTuple(args, by_copy ? "Os|p:copy_in" : "Os:share", &object, &token, &patient)
        || PyObject_GetBuffer(object, &view, PyBUF_ANY_CONTIGUOUS) != 0) {
        return NULL;
    }
    segment s;
    Py_BEGIN_ALLOW_THREADS
    *error = by_copy ? pool_copy_in(view.buf, (size_t)view.len, token, patient != 0, &s)
                     : pool_share(view.buf, (size_t)view.len, token, &s);
    Py_END_ALLOW_THREADS
    PyObject *result = NULL;
    if (*error == 0) {
        long long offset = s.start == NULL ? 0 : (const char *)view.buf - s.start + s.offset;
        result = Py_BuildValue("sL", s.name, offset);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyObject *
share(PyObject *module, PyObject *args)
{
    (void)module;
    int error;
    PyObject *result = hand_over(args, false, &error);
    if (error != 0) { /* not to be had as it is, for whatever reason: the caller copies */
        Py_RETURN_NONE;
    }
    return result;
}

static PyObject *
copy_in(PyObject *module, PyObject *args)
{
    (void)module;
    int error;
    PyObject *result = hand_over(args, true, &error);
    return error != 0 ? raise_errno(error, "no segment to copy into") : result;
}

static PyObject *
locate(PyObject *module, PyObject *object)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_ANY_CONTIGUOUS) != 0) {
        return NULL;
    }
    static const char *const states[] = {"open", "sealed", "leased"};
    segment s;
    PyObject *result = NULL;
    if (view.len == 0 || !pool_find(view.buf, (size_t)view.len, &s)) {
        result = Py_NewRef(Py_None);
    }
    else {
        long long offset = (const char *)view.buf - s.start + s.offset;
        result = Py_BuildValue("ssLn", states[s.state], s.name, offset, (Py_ssize_t)s.size);
    }
    PyBuffer_Release(&view);
    return result;
}

/* With the GIL held throughout: it takes a microsecond for each lease, and who lets the GIL go
 * may wait some milliseconds to have it back. */
static PyObject *
orphans(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    PyObject *list = PyList_New(0);
    for (segment *s = pool_orphans(), *next; s != NULL; s = next) {
        PyObject *item = list == NULL ? NULL
                                      : Py_BuildValue("KL", (unsigned long long)s->inode,
                                                      (long long)s->offset + (long long)s->size);
        if (item == NULL || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
        next = s->older;
        free(s);
    }
    return list;
}

static PyObject *
was_written(PyObject *module, PyObject *object)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_ANY_CONTIGUOUS) != 0) {
        return NULL;
    }
    bool written;
    Py_BEGIN_ALLOW_THREADS
    written = view.len > 0 && range_was_written(view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyBool_FromLong(written);
}

/* ---- events ---- */

/* The address of a buffer that is one aligned word; NULL with an exception if it is not. */
static uint32_t *
word_of(PyObject *object, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_WRITABLE) != 0) {
        return NULL;
    }
    if (view->len != sizeof(uint32_t) || (uintptr_t)view->buf % sizeof(uint32_t) != 0) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_ValueError, "expected a buffer of one aligned word of 4 bytes");
        return NULL;
    }
    return view->buf;
}

static PyObject *
wait_for_event(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *object;
    unsigned int seen;
    double seconds;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "OId:wait_for_event", &object, &seen, &seconds)) {
        return NULL;
    }
    uint32_t *word = word_of(object, &view);
    if (word == NULL) {
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = futex_wait(word, seen, seconds);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (error != 0) {
        return raise_errno(error, "cannot wait for an event");
    }
    Py_RETURN_NONE;
}

static PyObject *
tell_event(PyObject *module, PyObject *object)
{
    (void)module;
    Py_buffer view;
    uint32_t *word = word_of(object, &view);
    if (word == NULL) {
        return NULL;
    }
    int error = futex_wake(word);
    PyBuffer_Release(&view);
    if (error != 0) {
        return raise_errno(error, "cannot tell of an event");
    }
    Py_RETURN_NONE;
}

/* ---- the pool ---- */

#define LIMITS "nnnnp"
#define LIMIT_POINTERS(l) &(l)[0], &(l)[1], &(l)[2], &(l)[3]

static int
limits_from(const Py_ssize_t *numbers, int huge, pool_limits *limits)
{
    for (int i = 0; i < 4; i++) {
        if (numbers[i] < 0) {
            PyErr_SetString(PyExc_ValueError, "limits are not negative");
            return -1;
        }
    }
    *limits = (pool_limits){
        .threshold = (size_t)numbers[0],
        .keep = (size_t)numbers[1],
        .waiting = (size_t)numbers[2],
        .mappings = (size_t)numbers[3],
        .huge = huge != 0,
    };
    return 0;
}

static PyObject *
open_pool(PyObject *module, PyObject *args)
{
    (void)module;
    int directory, huge;
    const char *owner;
    Py_ssize_t numbers[4];
    pool_limits limits;
    if (!PyArg_ParseTuple(args, "is" LIMITS ":open_pool", &directory, &owner,
                          LIMIT_POINTERS(numbers), &huge)
        || limits_from(numbers, huge, &limits) != 0) {
        return NULL;
    }
    int error = pool_open(directory, owner, &limits);
    if (error != 0) {
        return raise_errno(error, "cannot open the pool");
    }
    Py_RETURN_NONE;
}

static PyObject *
set_limits(PyObject *module, PyObject *args)
{
    (void)module;
    int huge;
    Py_ssize_t numbers[4];
    pool_limits limits;
    if (!PyArg_ParseTuple(args, LIMITS ":set_limits", LIMIT_POINTERS(numbers), &huge)
        || limits_from(numbers, huge, &limits) != 0) {
        return NULL;
    }
    pool_set_limits(&limits);
    Py_RETURN_NONE;
}

static PyObject *
set_budget(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t nbytes, most = 0;
    if (!PyArg_ParseTuple(args, "n|n:set_budget", &nbytes, &most)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    pool_set_budget(nbytes > 0 ? (size_t)nbytes : 0, most > 0 ? (size_t)most : 0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *
close_pool(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    Py_BEGIN_ALLOW_THREADS
    pool_close();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *
is_open(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyBool_FromLong(pool_is_open());
}

static PyObject *
trim(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t keep = 0;
    if (!PyArg_ParseTuple(args, "|n:trim", &keep)) {
        return NULL;
    }
    size_t bytes;
    Py_BEGIN_ALLOW_THREADS
    bytes = pool_trim(keep > 0 ? (size_t)keep : 0);
    Py_END_ALLOW_THREADS
    return PyLong_FromSize_t(bytes);
}

static PyObject *
give_room(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    size_t bytes = 0;
    if (room_is_time_to_look()) { /* else the GIL stays: to get it back may take a while */
        Py_BEGIN_ALLOW_THREADS
        bytes = pool_give_room();
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromSize_t(bytes);
}

static PyObject *
make_room(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t nbytes;
    if (!PyArg_ParseTuple(args, "n:make_room", &nbytes)) {
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = pool_make_room(nbytes > 0 ? (size_t)nbytes : 0);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        return raise_errno(error, "no room in the directory");
    }
    Py_RETURN_NONE;
}

static PyObject *
count(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    pool_counts c = pool_count();
    return Py_BuildValue(
        "{s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:K,s:K,s:K,s:K,s:K,s:i}",
        "live_segments", (Py_ssize_t)c.live_segments, "live_bytes", (Py_ssize_t)c.live_bytes,
        "leased_segments", (Py_ssize_t)c.leased_segments,
        "leased_bytes", (Py_ssize_t)c.leased_bytes,
        "free_segments", (Py_ssize_t)c.idle.free_segments, "free_bytes", (Py_ssize_t)c.idle.free_bytes,
        "waiting_segments", (Py_ssize_t)c.idle.waiting_segments,
        "waiting_bytes", (Py_ssize_t)c.idle.waiting_bytes,
        "mappings", (Py_ssize_t)c.mappings,
        "created", (unsigned long long)c.created, "recycled", (unsigned long long)c.recycled,
        "sealed", (unsigned long long)c.sealed,
        "given_bytes", (unsigned long long)c.given_bytes, "refused", (unsigned long long)c.refused,
        "refused_because", c.refused_because);
}

/* ---- the allocator ---- */

static PyObject *
set_handler(PyObject *module, PyObject *handler)
{
    (void)module;
    return allocator_set_handler(handler);
}

static PyObject *
get_handler(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return allocator_get_handler();
}

/* ---- leaving when a signal comes ---- */

static PyObject *
prepare_farewell(PyObject *module, PyObject *args)
{
    (void)module;
    int directory;
    const char *owner, *process_file;
    if (!PyArg_ParseTuple(args, "iss:prepare_farewell", &directory, &owner, &process_file)) {
        return NULL;
    }
    int error = farewell_prepare(directory, owner, process_file);
    if (error != 0) {
        return raise_errno(error, process_file);
    }
    Py_RETURN_NONE;
}

static PyObject *
cancel_farewell(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    farewell_cancel();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"open_pool", open_pool, METH_VARARGS, NULL},
    {"close_pool", close_pool, METH_NOARGS, NULL},
    {"is_open", is_open, METH_NOARGS, NULL},
    {"set_limits", set_limits, METH_VARARGS, NULL},
    {"set_budget", set_budget, METH_VARARGS, NULL},
    {"trim", trim, METH_VARARGS, NULL},
    {"give_room", give_room, METH_NOARGS, NULL},
    {"make_room", make_room, METH_VARARGS, NULL},
    {"count", count, METH_NOARGS, NULL},
    {"share", share, METH_VARARGS, NULL},
    {"copy_in", copy_in, METH_VARARGS, NULL},
    {"lease", mapped_lease, METH_VARARGS, NULL},
    {"map_window", mapped_window, METH_VARARGS, NULL},
    {"orphans", orphans, METH_NOARGS, NULL},
    {"windows", mapped_windows, METH_NOARGS, NULL},
    {"wait_for_event", wait_for_event, METH_VARARGS, NULL},
    {"tell_event", tell_event, METH_O, NULL},
    {"locate", locate, METH_O, NULL},
    {"was_written", was_written, METH_O, NULL},
    {"prepare_farewell", prepare_farewell, METH_VARARGS, NULL},
    {"cancel_farewell", cancel_farewell, METH_NOARGS, NULL},
    {"set_handler", set_handler, METH_O, NULL},
    {"get_handler", get_handler, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "xshm._core",
    .m_doc = "Segments in shared memory: system calls, a lock, a table.",
    .m_size = -1, /* the pool is the process's, so there is one module a process */
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    if (allocator_init() != 0) {
        return NULL;
    }
    int error = pool_install_fork_handlers();
    if (error != 0) {
        return raise_errno(error, "pthread_atfork");
    }
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) {
        return NULL;
    }
    PyObject *ours = allocator_handler();
    PyObject *numpys = allocator_default_handler();
    if (mapped_add_types(module) != 0 || ours == NULL || numpys == NULL
        || PyModule_AddObjectRef(module, "HANDLER", ours) != 0
        || PyModule_AddObjectRef(module, "DEFAULT_HANDLER", numpys) != 0) {
        Py_CLEAR(module);
    }
    Py_XDECREF(ours);
    Py_XDECREF(numpys);
    return module;
}
