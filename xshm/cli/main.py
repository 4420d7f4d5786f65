"""The commands, and their arguments."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from dask.utils import format_bytes

import xshm
from xshm import janitor, lock_file, shortage
from xshm.channel import control
from xshm.cli import header
from xshm.container import names
from xshm.description import describe, dims_of
from xshm.directory import configured
from xshm.errors import ContainerNameError, ContainerNotFoundError, FormatError, XshmError
from xshm.holders import file_id, holders_of
from xshm.shared_dataset import SharedDataset
from xshm.tables import printable, sizes, table
from xshm.usage import KINDS, measure, total

_DAY = 86400  # seconds
_CLEAR = "\x1b[H\x1b[J"  # console_codes(4): to the top left; erase all from there


def program() -> int:
    """All that this process is for: the command of its arguments; the exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `xshm ls | head -1` is to end quietly
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be closed
            stream.reconfigure(errors="backslashreplace")
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Run a command, and leave the process's signals and streams as they are; the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except XshmError as error:
        return _fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xshm",
        description="What is published in shared memory, and the room for it. The configuration "
        "(xshm.directory, DASK_XSHM__DIRECTORY) says where that is.",
    )
    parser.add_argument("--version", action="version", version=f"xshm {xshm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Any, name: str, text: str, prints: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        if prints:
            command.add_argument("--json", action="store_true", help="print JSON, for programs")
        return command

    add(_ls, "ls", "list what is published, and which processes have it open")
    info = add(_info, "info", "show what a container holds, but for the values")
    info.add_argument("name", metavar="NAME")
    rm = add(_rm, "rm", "remove names; those who have them open keep them", prints=False)
    rm.add_argument("names", metavar="NAME", nargs="+")
    gc = add(_gc, "gc", "remove what processes left that were killed")
    gc.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    df = add(_df, "df", "show the room in the directory, and what takes it")
    df.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=1.0,
        help="show it again and again, every second or as often as told, until Ctrl-C",
    )
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds <= _DAY:
            return seconds
    raise argparse.ArgumentTypeError(
        f"expected seconds, more than 0 and at most {_DAY}, found {text!r}"
    )


def _print(chosen: argparse.Namespace, value: Any, text: str) -> int:
    print(json.dumps(value, indent=2) if chosen.json else text)
    return 0


def _fail(reason: object) -> int:
    message = reason.strerror if isinstance(reason, OSError) else reason
    print(f"xshm: {printable(str(message))}", file=sys.stderr)
    return 1


def _ls(chosen: argparse.Namespace) -> int:
    here, found = configured(), []
    for name in names.all_in(here):
        # Whatever is removed meanwhile is left out.
        with contextlib.suppress(FileNotFoundError, ContainerNotFoundError):
            status = (here.containers / name).lstat()
            found.append((file_id(status), _entry(name, status.st_size)))
    for name in control.all_in(here):
        # A file among the channels is none of them.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status, nbytes = control.status_of(here, name)
            entry = {"name": name, "nbytes": nbytes, "kind": "channel"}
            found.append((file_id(status), {**entry, "created": None, "dims": None, "error": None}))
    holders = holders_of([file for file, _ in found])
    for file, entry in found:
        entry["holders"] = [holder._asdict() for holder in holders[file]]
    entries = [entry for _, entry in found]
    text = table(["NAME", "SIZE", "AGE", "OPEN IN", "DIMS"], *map(_row, entries))
    return _print(chosen, entries, text)


def _entry(name: str, file_nbytes: int) -> dict[str, Any]:
    try:
        d = describe(SharedDataset(name))
    except (ContainerNameError, FormatError) as error:
        nothing = {"kind": None, "created": None, "dims": None}
        return {"name": name, "nbytes": file_nbytes, **nothing, "error": str(error)}
    told = {key: d[key] for key in ("name", "nbytes", "kind", "created")}
    return {**told, "dims": dims_of(d), "error": None}


def _row(entry: dict[str, Any]) -> list[str]:
    holders = ", ".join(f"{holder['pid']} {holder['command']}" for holder in entry["holders"])
    row = [entry["name"], format_bytes(entry["nbytes"])]
    if entry["error"] is not None:
        return [*row, "", holders, f"unreadable: {entry['error']}"]
    what = "channel" if entry["kind"] == "channel" else sizes(entry["dims"])
    return [*row, _age(entry["created"]), holders, what]


def _age(created: str | None) -> str:
    if created is None:
        return ""
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(created)
    return str(datetime.timedelta(age.days, age.seconds))


def _info(chosen: argparse.Namespace) -> int:
    description = describe(SharedDataset(chosen.name))
    return _print(chosen, description, header.text_of(description))


def _rm(chosen: argparse.Namespace) -> int:
    code = 0
    for name in chosen.names:
        try:
            _remove(name)
        except XshmError as error:
            code = _fail(error)
    return code


def _remove(name: str) -> None:
    try:
        xshm.unlink(name)
    except ContainerNotFoundError:
        if name not in control.all_in(configured()):
            raise
        with xshm.Channel(name) as channel:
            channel.unlink()


def _gc(chosen: argparse.Namespace) -> int:
    here, left = configured(), []
    with shortage.told:
        for found in janitor.remains(here):
            if not chosen.dry_run:
                found.remove(here)
            if found.files:
                left.append(found)
        if not chosen.dry_run:
            lock_file.remove_free(here)
    each = [{"id": found.process, **total(found.files.values())} for found in left]
    everything = total(status for found in left for status in found.files.values())
    rows = [[one["id"], *_count(one)] for one in [*each, {"id": "in all", **everything}]]
    text = table(["DEAD PROCESS", "FILES", "SIZE"], *rows)
    text += "\nwould be removed" if chosen.dry_run else "\nremoved"
    value = {"dry_run": chosen.dry_run, **everything, "processes": each}
    return _print(chosen, value, text)


def _df(chosen: argparse.Namespace) -> int:
    if chosen.watch is None:
        usage = measure(configured())
        return _print(chosen, usage, _text_of(usage))
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            usage = measure(configured())
            if chosen.json:
                print(json.dumps({"time": now, **usage}), flush=True)
            else:
                print(_screen_of(f"{now}\n{_text_of(usage)}"), flush=True)
            time.sleep(chosen.watch)
    return 0


def _screen_of(text: str) -> str:
    if not sys.stdout.isatty():
        return text + "\n"
    # As much as fits: what scrolls away could not be drawn over.
    columns, lines = shutil.get_terminal_size()
    return _CLEAR + "\n".join(line[:columns] for line in text.splitlines()[: lines - 1])


def _text_of(usage: dict[str, Any]) -> str:
    size, used, free = (format_bytes(usage[key]) for key in ("size", "used", "free"))
    kinds = [[kind, *_count(usage[kind])] for kind in KINDS]
    processes = [
        [
            one["id"],
            one["pid"] or "",
            one["command"] or ("" if one["alive"] else "(dead: xshm gc)"),
            *(format_bytes(one[kind]["nbytes"]) for kind in ("arrays", "segments", "drafts")),
        ]
        for one in usage["processes"]
    ]
    text = [
        f"{usage['directory']}: {size}, {used} used, {free} free",
        table(["WHAT", "FILES", "SIZE"], *kinds),
        table(["PROCESS", "PID", "COMMAND", "ARRAYS", "SEGMENTS", "DRAFTS"], *processes),
    ]
    return "\n\n".join(text)


def _count(total: dict[str, Any]) -> tuple[int, str]:
    return total["files"], format_bytes(total["nbytes"])
