"""Command line: ``python -m benchmarks COMMAND``.

A command is a module of this package with two functions: ``add_arguments(parser)`` and
``run(args) -> int``, whose result is the exit status.  The first line of the module's
docstring is its help.  To add a command, write the module and name it in ``COMMANDS``.
"""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = ("exchange", "datasets", "processes", "spilling", "soak")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the command it names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of xshm.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"benchmarks.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
