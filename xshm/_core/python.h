/* Python's limited API, so that one wheel serves every Python from 3.11 on; and its errors. */
#ifndef XSHM_PYTHON_H
#define XSHM_PYTHON_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include <errno.h>

/* OSError picks the subclass that fits the number, FileNotFoundError and so on. */
static inline PyObject *
raise_errno(int error, const char *what)
{
    errno = -error;
    return PyErr_SetFromErrnoWithFilename(PyExc_OSError, what);
}

#endif
