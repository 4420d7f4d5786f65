"""Time how Datasets are shared: xshm, netCDF4, h5netcdf, zarr, pickle and bare bytes in one run.

Each figure is of a process, or a cluster, that has just started, and the systems take turns,
so that a drift in the machine's speed does not bias their ratio.  What a system writes lies
in ``/dev/shm``.  Systems that are not installed are left out, and it is said.
"""

from __future__ import annotations

import argparse
import importlib.util

from . import files, large_datasets
from .comparison import add_options, run_works
from .formats import PACKAGES, is_installed

WORKS = {**files.WORKS, **large_datasets.WORKS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    size = "of the variable, as 256MiB; clusters take four times more; 1GiB is judged"
    add_options(parser, WORKS, size, "datasets.json")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    missing = [name for name in PACKAGES if not is_installed(name)]
    arrow = "with" if importlib.util.find_spec("pyarrow") else "without"
    packages = (*PACKAGES, "pandas", "pyarrow")
    return run_works(args, WORKS, packages, missing, note=f", {arrow} pyarrow")
