/* NumPy's allocation routines on top of the pool. */
#ifndef XSHM_ALLOCATOR_H
#define XSHM_ALLOCATOR_H

#include "python.h"

int allocator_init(void);
PyObject *allocator_handler(void);
PyObject *allocator_default_handler(void);
PyObject *allocator_set_handler(PyObject *handler);
PyObject *allocator_get_handler(void);

#endif
