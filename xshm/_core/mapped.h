/* Mapped bytes as Python objects. */
#ifndef XSHM_MAPPED_H
#define XSHM_MAPPED_H

#include "python.h"

int mapped_add_types(PyObject *module);
PyObject *mapped_lease(PyObject *module, PyObject *args);
PyObject *mapped_window(PyObject *module, PyObject *args);
PyObject *mapped_windows(PyObject *module, PyObject *unused);

#endif
