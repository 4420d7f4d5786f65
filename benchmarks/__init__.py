"""Benchmarks of xshm: ``python -m benchmarks --help``."""

import os

# One BLAS thread per process, set before NumPy is loaded.  Dask's nannies do the
# same for worker processes; this makes workers that are threads comparable.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
