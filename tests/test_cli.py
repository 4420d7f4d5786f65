"""The command line, run as a user runs it; and what it is made of."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib
import itertools
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
import xarray as xr

import xshm
from tests.conftest import files_in
from tests.test_docs import ROOT, blocks_of
from tests.test_process import Peer, hold_array, own_id, share_array, take
from xshm.container import header, preamble
from xshm.container.container import MappedContainer
from xshm.directory import Directory, configured
from xshm.holders import file_id, holders_of

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

PAGE = ROOT / "docs" / "command-line.md"


def run(*arguments: str, code: int = 0, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the command; a traceback is never right, nor is a word of error without an error."""
    done = subprocess.run(
        [sys.executable, "-m", "xshm", *arguments], capture_output=True, text=True, **how
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert (done.stderr == "") == (code == 0), done.stderr
    return done


def told(*arguments: str) -> Any:
    """What the command prints for programs."""
    return json.loads(run(*arguments, "--json").stdout)


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {"t2m": (("time", "lat"), np.zeros((6, 3), "f4"), {"units": "K", "range": np.arange(2)})},
        {"time": np.arange("2000-01-01", "2000-01-07", dtype="M8[D]").astype("M8[ns]")},
        {"title": "x"},
    )


@pytest.fixture
def containers() -> Iterator[Path]:
    """The folder of containers, which is emptied in the end."""
    folder = configured().containers
    with dask.config.set(scheduler="synchronous"):  # dask would keep its threads
        yield folder
    for file in folder.iterdir():
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


# ---- ls ----


def test_ls_tells_name_size_dims_and_who_has_it_open(containers: Path) -> None:
    shared = xshm.publish(dataset(), "era5")
    xshm.publish(np.zeros(4), "other")
    mapped = MappedContainer.open("era5")
    era5, other = told("ls")
    command = Path("/proc/self/comm").read_text().strip()
    assert era5.pop("holders") == [{"pid": os.getpid(), "command": command}]
    created = datetime.datetime.fromisoformat(era5.pop("created"))
    assert created.tzinfo is not None
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(minutes=2)
    assert era5 == {
        "name": "era5",
        "kind": "dataset",
        "nbytes": shared.nbytes,
        "dims": {"time": 6, "lat": 3},
        "error": None,
    }
    assert (other["kind"], other["dims"], other["holders"]) == ("ndarray", {"dim_0": 4}, [])
    head, first, second = run("ls").stdout.splitlines()
    assert head.split() == ["NAME", "SIZE", "AGE", "OPEN", "IN", "DIMS"]
    assert re.fullmatch(rf"era5 .* {os.getpid()} {re.escape(command)} +time: 6, lat: 3", first)
    assert second.startswith("other ")
    assert str(os.getpid()) not in second
    del mapped
    assert told("ls")[0]["holders"] == []


def test_nothing_published() -> None:
    assert told("ls") == []
    assert run("ls").stdout.split() == ["NAME", "SIZE", "AGE", "OPEN", "IN", "DIMS"]


def test_a_dim_of_two_sizes_in_a_datatree(containers: Path) -> None:
    tree = xr.DataTree.from_dict(
        {"/a": xr.Dataset({"x": ("time", [1, 2])}), "/b": xr.Dataset({"x": ("time", [1, 2, 3])})}
    )
    xshm.publish(tree, "tree")
    assert told("ls")[0]["dims"] == {"time": 2, "/b/time": 3}


def test_what_is_no_container_is_listed_with_a_remark(containers: Path, tmp_path: Path) -> None:
    shared = xshm.publish(dataset(), "whole")
    cut_off = (containers / "whole").read_bytes()[:100]
    for name, content in {"cut": cut_off, "empty": b"", "ev\x1b[31mil": b"", "\udcff": b""}.items():
        (containers / name).write_bytes(content)
        (containers / name).chmod(0o600)
    (containers / "folder").mkdir()
    (containers / "link").symlink_to(tmp_path)
    os.mkfifo(containers / "fifo", 0o600)
    listed = {entry["name"]: entry for entry in told("ls")}
    assert set(listed) == {
        "whole",
        "cut",
        "empty",
        "folder",
        "link",
        "fifo",
        "ev\x1b[31mil",
        "\udcff",
    }
    assert listed.pop("whole")["nbytes"] == shared.nbytes
    for entry in listed.values():
        assert "expected" in entry["error"]
        assert entry["kind"] is entry["dims"] is entry["created"] is None
    assert "cut off" in listed["cut"]["error"]
    assert listed["cut"]["nbytes"] == 100
    text = run("ls").stdout
    assert len(text.splitlines()) == 1 + 8
    assert text.count("unreadable: ") == 7
    assert "ev\\x1b[31mil" in text
    assert "\x1b" not in text


def _with_header(containers: Path, name: str, **changes: Any) -> None:
    """A copy of container "plain" whose header lies, in good form."""
    packed = (containers / "plain").read_bytes()
    start = preamble.Preamble.unpack(packed[: preamble.NBYTES], len(packed))
    end = start.header_offset + start.header_nbytes
    lying = {**json.loads(packed[start.header_offset : end]), **changes}
    new = header.pack({key: value for key, value in lying.items() if value is not None})
    start = start._replace(header_offset=len(packed), header_nbytes=len(new))
    start = start._replace(nbytes=len(packed) + len(new))
    (containers / name).write_bytes(start.pack(new) + packed[preamble.NBYTES :] + new)
    (containers / name).chmod(0o600)


def test_headers_that_lie_are_damaged_containers(containers: Path) -> None:
    xshm.publish(dataset(), "plain")
    group = xshm.SharedDataset("plain").container.header["groups"][0]
    lies: dict[str, dict[str, Any]] = {
        "created-no-time": {"created": "yesterday"},
        "created-number": {"created": 7},
        "attrs-no-dict": {"groups": [{**group, "attrs": [1, 2]}]},
        "variables-missing": {"groups": [{"path": "/"}]},
        "kind-without-array": {"kind": "ndarray"},
        "chunks-of-text": {"groups": [{**group, "variables": [{"chunks": "x"}]}]},
    }
    for name, changes in lies.items():
        _with_header(containers, name, **changes)
    listed = {entry["name"]: entry["error"] for entry in told("ls")}
    assert listed.pop("plain") is None
    assert set(listed) == set(lies)
    assert all(listed.values()), listed
    assert "expected" in run("info", "attrs-no-dict", code=1).stderr


def test_a_header_need_not_tell_when_it_was_made(containers: Path) -> None:
    xshm.publish(dataset(), "plain")
    _with_header(containers, "undated", created=None)
    dated, undated = told("ls")
    assert undated["created"] is undated["error"] is None
    assert undated["dims"] == dated["dims"]
    assert "created" not in run("info", "undated").stdout


# ---- info ----


def test_info_of_a_dataset(containers: Path) -> None:
    ds = dataset().chunk(time=4).assign(flag=("station", ["a", "bc"]))
    shared = xshm.publish(ds, "era5")
    described = told("info", "era5")
    (group,) = described.pop("groups")
    created = described.pop("created")
    assert datetime.datetime.fromisoformat(created).tzinfo is not None
    assert described == {
        "name": "era5",
        "kind": "dataset",
        "nbytes": shared.nbytes,
        "generation": shared.generation,
    }
    t2m, time, flag = group.pop("variables")
    assert t2m == {
        "name": "t2m",
        "dtype": "float32",
        "dims": ["time", "lat"],
        "shape": [6, 3],
        "chunks": [[4, 2], [3]],
        "coordinate": False,
        "attrs": {"units": "K", "range": [0, 1]},
    }
    assert (time["coordinate"], time["chunks"]) == (True, None)
    assert flag["dims"] == ["station"]
    assert group == {
        "path": "/",
        "dims": {"time": 6, "lat": 3, "station": 2},
        "indexes": [{"type": "PandasIndex", "names": ["time"]}],
        "attrs": {"title": "x"},
    }
    assert run("info", "era5").stdout.splitlines() == [
        "era5: dataset",
        f"size: {shared.nbytes / 1024:.2f} kiB",
        f"created: {created}",
        f"generation: {shared.generation}",
        "",
        "group /",
        "  dims: time: 6, lat: 3, station: 2",
        "  variables:",
        "    float32 t2m(time, lat), chunks (4, 3)",
        "        units = 'K'",
        "        range = [0, 1]",
        "    datetime64[ns] time(time), coordinate",
        f"    {ds.flag.dtype} flag(station)",
        "  indexes:",
        "    PandasIndex(time)",
        "  attrs:",
        "    title = 'x'",
    ]


def test_info_of_groups(containers: Path) -> None:
    tree = xr.DataTree.from_dict({"/": dataset(), "/low/er": xr.Dataset(attrs={"level": 2})})
    xshm.publish(tree, "tree")
    groups = told("info", "tree")["groups"]
    assert [group["path"] for group in groups] == ["/", "/low", "/low/er"]
    assert groups[2] == {
        "path": "/low/er",
        "dims": {},
        "variables": [],
        "indexes": [],
        "attrs": {"level": 2},
    }
    assert "group /low/er\n  dims:\n" in run("info", "tree").stdout


def test_info_of_an_array(containers: Path) -> None:
    xshm.publish(np.zeros((2, 3), "f4"), "array")
    assert run("info", "array").stdout.splitlines()[-1] == "    float32 (dim_0, dim_1)"
    (group,) = told("info", "array")["groups"]
    assert group["dims"] == {"dim_0": 2, "dim_1": 3}


def test_irregular_chunks_are_all_told(containers: Path) -> None:
    xshm.publish(dataset().chunk(time=(1, 4, 1)), "era5")
    assert "chunks (1+4+1, 3)" in run("info", "era5").stdout


@pytest.mark.slow
def test_attributes_and_names_of_any_kind(containers: Path) -> None:
    attrs = {
        "nan": float("nan"),
        "date": datetime.date(2000, 1, 2),
        "escape": "\x1b[31m\u009b",
        "nested": {"a": (1, {"b": np.float32(0.5)})},
        7: np.datetime64("2000-01-01"),
        "umlaut": "\u00fc",
    }
    name = ("a", 1)
    xshm.publish(xr.Dataset({name: ("x\n", [1])}, attrs=attrs), "\u00e4")
    group = told("info", "\u00e4")["groups"][0]
    assert group["attrs"] == {
        "nan": "nan",
        "date": "2000-01-02",
        "escape": "\x1b[31m\u009b",
        "nested": {"a": [1, {"b": 0.5}]},
        "7": "2000-01-01",
        "umlaut": "\u00fc",
    }
    assert group["variables"][0]["name"] == str(name)
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for text in (run("info", "\u00e4").stdout, run("info", "\u00e4", env=ascii_only).stdout):
        assert not set(text) & {"\x1b", "\u009b"}
        assert "(x\\n)" in text
    assert "\\xe4" in run("ls", env=ascii_only).stdout


def test_info_of_nothing_and_of_no_container(containers: Path) -> None:
    (containers / "notes").write_bytes(b"some text")
    (containers / "notes").chmod(0o600)
    for name, reason in {
        "nothing": "there is no container 'nothing'",
        "notes": "expected a container",
        "../x": "expected the name of a container",
    }.items():
        error = run("info", name, code=1).stderr
        assert error.startswith("xshm: ")
        assert reason in error
        assert error.count("\n") == 1


# ---- rm ----


def test_rm_removes_names_and_who_has_them_open_keeps_them(containers: Path) -> None:
    for name in ("a", "b", "c"):
        xshm.publish(np.arange(4), name)
    opened = xshm.open("a")
    assert run("rm", "a", "b").stdout == ""
    assert [entry["name"] for entry in told("ls")] == ["c"]
    assert (opened == np.arange(4)).all()


def test_rm_of_what_is_missing_says_so_and_removes_the_rest(containers: Path) -> None:
    xshm.publish(np.arange(4), "a")
    (containers / "notes").write_bytes(b"some text")
    (containers / "folder").mkdir()
    error = run("rm", "missing", "folder", "a", "../x", "notes", code=1).stderr
    missing, folder, wrong = error.splitlines()
    assert "there is no container 'missing'" in missing
    assert str(containers / "folder") in folder
    assert "'../x'" in wrong
    assert [entry["name"] for entry in told("ls")] == ["folder"]


# ---- gc ----


def _publish(name: str, lifetime: Any) -> None:
    xshm.publish(np.zeros(1000), name, lifetime=lifetime)


def test_gc_removes_what_the_dead_left_and_a_dry_run_tells_the_same(
    directory: Path, containers: Path
) -> None:
    dead = Peer()
    dead(hold_array, 1)
    assert dead(share_array, 1) is not None
    dead(_publish, "stays", "boot")
    dead(_publish, "goes", "process")
    killed = dead(own_id)
    with Peer() as living:
        living(hold_array, 2)
        before = files_in(directory)
        dead.kill()
        would = told("gc", "--dry-run")
        assert files_in(directory) == before
        assert run("gc", "--dry-run").stdout.endswith("would be removed\n")
        did = told("gc")
        after = files_in(directory)
        assert (would.pop("dry_run"), did.pop("dry_run")) == (True, False)
        assert did == would
        # A segment and its token, container "goes" and its bond, the process file.
        gone = {"files": 4, "nbytes": did["nbytes"]}
        assert did == {**gone, "processes": [{"id": killed, **gone}]}
        assert len(before) - len(after) == 5  # the token is but a second name
        assert did["nbytes"] >= 2 * 2**20 + 8000
        assert not any(killed in name for name in after)
        assert [entry["name"] for entry in told("ls")] == ["stays"]
        nothing = {"dry_run": False, "files": 0, "nbytes": 0, "processes": []}
        assert told("gc") == nothing


def test_a_name_that_was_published_anew_does_not_go_with_the_dead(containers: Path) -> None:
    dead = Peer()
    dead(_publish, "name", "process")
    xshm.publish(np.arange(4), "name", mode="w")
    xshm.process.close()
    dead.kill()
    assert told("gc")["files"] == 2  # the bond and the process file
    assert (xshm.open("name") == np.arange(4)).all()


# ---- df ----


def test_df_tells_where_the_bytes_are_and_whose(directory: Path, containers: Path) -> None:
    shared = xshm.publish(np.zeros(1000), "a")
    with Peer() as peer, Peer() as other:
        peer(hold_array, 1)
        other(take, peer(share_array, 1))
        assert other(share_array, 1) is not None  # handed on: a second name, no more bytes
        here = configured()
        (here.segments / f"{other(own_id)}.99.draft").write_bytes(bytes(8192))
        dead = Peer()
        dead(hold_array, 3)
        killed = dead(own_id)
        dead.kill()
        usage = told("df")
        segment = usage["segments"]["nbytes"] // 2
        assert segment >= 2 * 2**20
        nothing = {"files": 0, "nbytes": 0}
        one = {"files": 1, "nbytes": segment}
        command = Path("/proc/self/comm").read_text().strip()
        by_id = {found.pop("id"): found for found in usage["processes"]}
        assert by_id == {
            peer(own_id): {
                "alive": True,
                "pid": peer.pid,
                "command": command,
                "arrays": nothing,
                "segments": one,
                "drafts": nothing,
            },
            other(own_id): {
                "alive": True,
                "pid": other.pid,
                "command": command,
                "arrays": nothing,
                "segments": nothing,
                "drafts": {"files": 1, "nbytes": 8192},
            },
            killed: {
                "alive": False,
                "pid": None,
                "command": None,
                "arrays": nothing,
                "segments": one,
                "drafts": nothing,
            },
        }
        assert usage["segments"] == {"files": 2, "nbytes": 2 * segment}
        assert usage["drafts"] == {"files": 1, "nbytes": 8192}
        assert usage["containers"] == {"files": 1, "nbytes": shared.nbytes}
        assert usage["directory"] == str(here.path)
        assert usage["used"] + usage["free"] == usage["size"]
        lines = run("df").stdout.splitlines()
        assert lines[0].startswith(f"{here.path}: ")
        assert any(line.split()[:3] == ["segments", "2", "4.00"] for line in lines)
        assert any(re.search(rf" {peer.pid} .* 2.00 MiB +0 B$", line) for line in lines)
        assert any("xshm gc" in line and killed in line for line in lines)


def test_a_sent_array_whose_segment_is_gone_counts_for_its_sender(here: Directory) -> None:
    with Peer() as peer:
        peer(hold_array, 1)
        assert peer(share_array, 1) is not None
        (segment,) = here.segments.glob("*.segment")
        segment.unlink()
        assert told("df")["segments"]["files"] == 1


@contextlib.contextmanager
def watching(*arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """``xshm df --watch``; it must end in good order by Ctrl-C."""
    command = [sys.executable, "-m", "xshm", "df", "--watch", "0.05", *arguments]
    # Readline, which pytest imports, leaves the size of another terminal for children to inherit.
    known = {key: text for key, text in os.environ.items() if key not in ("LINES", "COLUMNS")}
    with subprocess.Popen(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=known
    ) as running:
        try:
            yield running
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=30)
            assert (running.returncode, errors) == (0, "")
        finally:
            running.kill()


def test_df_is_shown_again_and_again_one_after_another(directory: Path) -> None:
    with watching() as running:
        assert running.stdout is not None
        heads = (line for line in running.stdout if line.startswith(f"{configured().path}: "))
        assert [next(heads) and None for _ in range(3)] == [None] * 3


def test_df_for_programs_is_a_line_each_time_and_tells_what_changes(containers: Path) -> None:
    with watching("--json") as running:
        assert running.stdout is not None
        usages = map(json.loads, running.stdout)
        first = next(usages)
        assert datetime.datetime.fromisoformat(first["time"]).tzinfo is not None
        assert first["containers"]["files"] == 0
        xshm.publish(np.zeros(4), "x")
        assert any(usage["containers"]["files"] == 1 for usage in usages)


def test_df_is_drawn_over_what_was_there_on_a_terminal(containers: Path) -> None:
    for i in range(20):
        (configured().processes / f"{i:016x}").touch(mode=0o600)
    terminal, its_end = pty.openpty()
    lines, columns = 10, 20
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    try:
        with watching(stdout=its_end):
            shown = b""
            while shown.count(b"\x1b[H\x1b[J") < 3:
                shown += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        os.close(its_end)
    run("gc")
    _, *screens, _ = shown.decode().split("\x1b[H\x1b[J")
    for screen in screens:
        drawn = screen.splitlines()
        assert datetime.datetime.fromisoformat(drawn[0][:19])
        assert drawn[1] == str(configured().path)[:columns]
        assert 5 < len(drawn) < lines
        assert max(map(len, drawn)) <= columns


@pytest.mark.parametrize("seconds", ["0", "nan", "1e9", "often"])
def test_a_pause_that_is_none_is_a_sentence(seconds: str) -> None:
    assert "expected seconds" in run("df", f"--watch={seconds}", code=2).stderr


# ---- all ----


@pytest.mark.parametrize("close", ["exec 1>&-;", ""])
def test_a_closed_stdout_is_no_traceback(close: str, containers: Path) -> None:
    xshm.publish(dataset(), "era5")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            ["bash", "-c", f'{close} exec "$0" -m xshm ls', sys.executable],
            stdout=writer,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == (0 if close else -signal.SIGPIPE)


def test_a_directory_that_cannot_be_used_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_XSHM__DIRECTORY", str(tmp_path / "none"))
    for command in (["ls"], ["df"], ["gc"], ["rm", "x"], ["info", "x"]):
        error = run(*command, code=1).stderr
        assert "set xshm.directory" in error
        assert error.count("\n") == 1


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["xshm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert "xshm.cli" in project["tool"]["setuptools"]["packages"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: only root may")
def test_processes_of_other_users_are_passed_over(here: Directory) -> None:
    which = file_id((here.processes / own_id()).stat())
    assert [holder.pid for holder in holders_of([which])[which]] == [os.getpid()]
    with Peer() as stranger:
        stranger(os.setuid, 65534)
        assert stranger(holders_of, [which]) == {which: []}


# ---- the page ----


def _shape(text: str) -> list[str]:
    """Lines without what differs from run to run: ids, times, numbers, widths of columns."""
    text = re.sub(r" +", " ", text)
    text = re.sub(r"^/\S+:", "DIRECTORY:", text, flags=re.MULTILINE)
    text = re.sub(r"\b[0-9a-f]{16,}\b", "ID", text)
    text = re.sub(r"\S+T\S+\+00:00", "TIME", text)
    text = re.sub(r"\d+ (python|pytest)\S*", "PID COMMAND", text)
    text = re.sub(r"[\d.:]*\d( [kMGT]iB| B)?(?=\s|$)", "N", text)
    return [line.strip() for line in text.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_page_print_what_it_says(tmp_path: Path, directory: Path) -> None:
    blocks = blocks_of(PAGE)
    (program,) = (block.text for block in blocks if block.language == "python")
    commands = {
        block.text.strip(): after.text
        for block, after in itertools.pairwise(blocks)
        if (block.language, after.language) == ("bash", "text")
    }
    commands = {tuple(command.split()[1:]): text for command, text in commands.items()}
    of_the_dead = {("gc", "--dry-run")}
    assert set(commands) == {("ls",), ("info", "era5"), ("df",), *of_the_dead}
    script = tmp_path / "program.py"
    script.write_text(program + "print('ready', flush=True)\ninput()\n")
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        for command in commands.keys() - of_the_dead:
            assert _shape(run(*command).stdout) == _shape(commands[command]), command
        running.kill()
        running.wait()
    for command in of_the_dead:
        assert _shape(run(*command).stdout) == _shape(commands[command]), command
    assert files_in(directory) != []
    run("gc")
    assert files_in(directory) == []


@pytest.mark.parametrize("command", [["ls"], ["info", "a"], ["df"], ["gc"]], ids=lambda c: c[0])
def test_the_page_has_every_key_that_is_printed(command: list[str], containers: Path) -> None:
    xshm.publish(dataset(), "a")
    text = PAGE.read_text().partition("## For programs")[2]
    (explained,) = re.findall(rf"^- `xshm {command[0]}[^`]*`:(.*?)^(?:- |$)", text, re.M | re.S)
    keys = set(re.findall(r"`(\w+)`", explained))
    printed = told(*command)
    for entry in printed if isinstance(printed, list) else [printed]:
        assert set(entry) <= keys
