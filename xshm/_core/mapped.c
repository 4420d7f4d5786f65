/* Mapped bytes as Python objects: each is a buffer, and its mapping ends with it. */
#include "mapped.h"

#include "core.h"

#include <string.h>

/* ---- Lease: a buffer that keeps its mapping, and so its lock, alive ---- */

typedef struct {
    PyObject_HEAD
    segment *segment;
    size_t skipped; /* from the start of the mapping to the first byte */
    Py_ssize_t nbytes;
} Lease;

static PyObject *lease_type;

static int
lease_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Lease *lease = (Lease *)self;
    return PyBuffer_FillInfo(view, self, lease->segment->start + lease->skipped, lease->nbytes, 0,
                             flags);
}

static void
lease_dealloc(PyObject *self)
{
    Lease *lease = (Lease *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (lease->segment != NULL) {
        pool_drop_lease(lease->segment);
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot lease_slots[] = {
    {Py_tp_doc, "Bytes of another process's segment: writable, copy-on-write, locked.\n\n"
                "The lease ends when the last view of the buffer is gone."},
    {Py_tp_dealloc, lease_dealloc},
    {Py_bf_getbuffer, lease_getbuffer},
    {0, NULL},
};

static PyType_Spec lease_spec = {
    .name = "xshm._core.Lease",
    .basicsize = sizeof(Lease),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lease_slots,
};

PyObject *
mapped_lease(PyObject *module, PyObject *args)
{
    (void)module;
    const char *token, *name;
    long long offset;
    Py_ssize_t nbytes;
    if (!PyArg_ParseTuple(args, "ssLn:lease", &token, &name, &offset, &nbytes)) {
        return NULL;
    }
    if (strchr(token, '/') != NULL || strlen(name) >= XSHM_NAME_SIZE || offset < 0 || nbytes <= 0) {
        return raise_errno(-EINVAL, "not a handle");
    }
    Lease *self = (Lease *)PyType_GenericAlloc((PyTypeObject *)lease_type, 0);
    if (self == NULL) {
        return NULL;
    }
    int error;
    segment *s;
    size_t skipped = 0;
    Py_BEGIN_ALLOW_THREADS
    s = pool_lease(token, name, (off_t)offset, (size_t)nbytes, &skipped, &error);
    Py_END_ALLOW_THREADS
    self->segment = s;
    self->skipped = skipped;
    self->nbytes = nbytes;
    if (s == NULL) {
        Py_DECREF(self);
        return raise_errno(error, token);
    }
    return (PyObject *)self;
}

/* ---- Window: a part of a file, mapped; the mapping ends with the object ---- */

typedef struct {
    PyObject_HEAD
    window mapped;
    Py_ssize_t nbytes;
} Window;

static PyObject *window_type;
static Py_ssize_t live_windows; /* under the GIL */

static int
window_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Window *w = (Window *)self;
    return PyBuffer_FillInfo(view, self, w->mapped.start + w->mapped.skipped, w->nbytes, 0, flags);
}

static void
window_dealloc(PyObject *self)
{
    Window *w = (Window *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (w->mapped.start != NULL) {
        window_unmap(&w->mapped);
        live_windows--;
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot window_slots[] = {
    {Py_tp_doc, "A part of a file, mapped. Read it with memoryview()."},
    {Py_tp_dealloc, window_dealloc},
    {Py_bf_getbuffer, window_getbuffer},
    {0, NULL},
};

static PyType_Spec window_spec = {
    .name = "xshm._core.Window",
    .basicsize = sizeof(Window),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = window_slots,
};

PyObject *
mapped_window(PyObject *module, PyObject *args)
{
    (void)module;
    int file, shared;
    long long offset;
    Py_ssize_t nbytes;
    if (!PyArg_ParseTuple(args, "iLnp:map_window", &file, &offset, &nbytes, &shared)) {
        return NULL;
    }
    Window *self = (Window *)PyType_GenericAlloc((PyTypeObject *)window_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->nbytes = nbytes;
    int error = nbytes < 0 ? -ERANGE
                           : window_map(file, (off_t)offset, (size_t)nbytes, shared != 0,
                                        &self->mapped);
    if (error != 0) {
        self->mapped.start = NULL;
        Py_DECREF(self);
        return raise_errno(error, "cannot map a part of a file");
    }
    live_windows++;
    return (PyObject *)self;
}

PyObject *
mapped_windows(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromSsize_t(live_windows);
}

int
mapped_add_types(PyObject *module)
{
    lease_type = PyType_FromSpec(&lease_spec);
    window_type = PyType_FromSpec(&window_spec);
    if (lease_type == NULL || window_type == NULL
        || PyModule_AddObjectRef(module, "Lease", lease_type) != 0
        || PyModule_AddObjectRef(module, "Window", window_type) != 0) {
        return -1;
    }
    return 0;
}
