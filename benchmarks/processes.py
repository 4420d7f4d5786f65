"""Time what plain processes share: xshm, pickle and packages for shared arrays in one run.

Each figure is of processes that have just started, and the systems take turns, so that a
drift in the machine's speed does not bias their ratio.  Packages that are not installed are
left out, and it is said.
"""

from __future__ import annotations

import argparse

from . import channels, locks, pools, shared_arrays
from .comparison import add_options, run_works
from .fresh import installed, own_directory

WORKS = {**pools.WORKS, **shared_arrays.WORKS, **channels.WORKS, **locks.WORKS}

#: Packages that are compared with, and the names under which they are imported.
PACKAGES = {
    "joblib": "joblib",
    "shared-ndarray2": "shared_ndarray2",
    "SharedArray": "SharedArray",
    "ndsharray": "ndsharray",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    size = "of the largest array, as 64MiB, and all others in proportion; 1GiB is judged"
    add_options(parser, WORKS, size, "processes.json")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    missing = [package for package, name in PACKAGES.items() if not installed(name)]
    with own_directory():
        return run_works(args, WORKS, tuple(PACKAGES), missing)
