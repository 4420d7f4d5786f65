"""Time how Datasets are shared: xshm, netCDF4, h5netcdf, zarr, pickle and bare bytes in one run.

Each figure is of a process, or a cluster, that has just started, and the systems take turns,
so that a drift in the machine's speed does not bias their ratio.  What a system writes lies
in ``/dev/shm``.  Systems that are not installed are left out, and it is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time

from dask.utils import parse_bytes

from . import files, large_datasets
from .comparison import compare, table, verdicts, write_json
from .formats import PACKAGES, is_installed
from .measure import Results, machine, machine_text

WORKS = {**files.WORKS, **large_datasets.WORKS}
FULL_SIZE = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add = parser.add_argument
    add(
        "--size",
        type=parse_bytes,
        default=FULL_SIZE,
        metavar="BYTES",
        help="of the variable, as 256MiB; clusters take four times more; 1GiB is judged",
    )
    add("--repeats", type=int, default=5, metavar="N", help="rounds")
    add("--only", nargs="+", choices=WORKS, metavar="NAME", help=f"of {', '.join(WORKS)}")
    add("--json", default="datasets.json", metavar="FILE", help="where to write all samples")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    began = time.perf_counter()
    missing = [name for name in PACKAGES if not is_installed(name)]
    if missing:
        print(f"not installed, and left out: {', '.join(missing)}", file=sys.stderr)
    works = {name: work for name, work in WORKS.items() if name in (args.only or WORKS)}
    judge = args.size == FULL_SIZE
    description = machine((*PACKAGES, "pandas", "pyarrow"))
    results = Results()
    try:
        for name, work in works.items():
            compare(results, name, work, args.size, args.repeats)
            settings = {k: v for k, v in vars(args).items() if k != "run"}
            settings["seconds"] = time.perf_counter() - began
            write_json(args.json, results, works, description, settings, judge)
    except KeyboardInterrupt:
        print("interrupted: this is what there is", file=sys.stderr)

    print(machine_text(description))
    arrow = "with" if importlib.util.find_spec("pyarrow") else "without"
    print(
        f"{args.repeats} rounds, {arrow} pyarrow.  Median [lowest..highest]; "
        "ratios are taken within a round."
    )
    if missing:
        print(f"Not installed: {', '.join(missing)}.")
    if not judge:
        print(f"The size is {args.size / 2**20:.0f} MiB: the descriptions give the full one.")
    for name, work in works.items():
        print(f"\n{name}: {work.description()}\n")
        print(table(results, name, work), end="\n\n")
        for verdict in verdicts(results, name, work, judge):
            print("- {system}: {goal}: {figure}: {verdict}".format(**verdict))
    print(f"\nTook {time.perf_counter() - began:.0f} s; all samples are in {args.json}.")
    return 1 if results.failures else 0
