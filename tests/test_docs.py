"""What the documentation says is so: its examples run, its commands work, its names exist."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import xshm
from tests.conftest import files_in

ROOT = Path(__file__).parents[1]
PAGES = [
    page for folder in (".", "docs", "examples") for page in sorted((ROOT / folder).glob("*.md"))
]
SCRIPTS = Path(sys.executable).parent

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    output: str | None
    """Of a ``python`` block: the ``text`` block that comes next after "prints"."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = list(_FENCED.finditer(text))
    blocks = []
    for i, match in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else None
        output = None
        if (
            after is not None
            and after[1] == "text"
            and text[match.end() : after.start()].strip() == "prints"
        ):
            output = after[2]
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2], output))
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def run(
    command: list[str | os.PathLike[str]], folder: Path, seconds: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run to the end, with this environment's commands first; fails on an exit code."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


# ---- examples in the pages ----

#: Packages that some examples use and xshm does not need.
OTHERS = {"SharedArray", "joblib", "ndsharray", "ray", "shared_ndarray2", "torch"}


def skip_where_not_installed(block: Block) -> None:
    """Skip an example with other packages where these are not there."""
    for name in OTHERS.intersection(re.findall(r"^(?:from|import) (\w+)", block.text, re.M)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_an_example_runs_and_prints_what_the_page_says(
    block: Block, tmp_path: Path, directory: Path
) -> None:
    skip_where_not_installed(block)
    # A script, since the workers of a cluster import the main module.
    script = tmp_path / "example.py"
    script.write_text(block.text)
    done = run([sys.executable, script], tmp_path)
    if block.output is not None:
        assert done.stdout == block.output
    assert "Traceback" not in done.stderr
    assert files_in(directory) == []


@pytest.mark.parametrize(
    "name",
    ["xshm", *(module.name for module in pkgutil.walk_packages(xshm.__path__, "xshm."))],
)
def test_examples_of_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    try:
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    finally:
        if name == "xshm.multiprocessing":
            module.disable()  # importing it is enough to switch it on
    assert result.failed == 0


# ---- the example program ----


@pytest.mark.slow
def test_the_example_gives_the_same_trend_over_both_protocols(tmp_path: Path) -> None:
    told = {}
    for protocol in ("shm", "tcp"):
        picture = tmp_path / f"{protocol}.png"
        done = run(
            [
                *(sys.executable, ROOT / "examples" / "climate_trends.py"),
                *("--protocol", protocol, "--scale", "0.02", "--workers", "2"),
                *("--output", picture),
            ],
            tmp_path,
        )
        assert picture.read_bytes().startswith(b"\x89PNG")
        (trend,) = re.findall(r"^Trend .*: area mean .* K per decade .*$", done.stdout, re.M)
        (share,) = re.findall(r"^EOF 1 explains .* of the variance", done.stdout, re.M)
        told[protocol] = trend, share
        assert ("sent as ordinary bytes through sockets" in done.stdout) == (protocol == "shm")
    assert told["shm"] == told["tcp"]


@pytest.mark.slow
def test_the_example_of_loading_once_saves_memory_for_everybody(
    tmp_path: Path, directory: Path
) -> None:
    picture = tmp_path / "response.png"
    done = run(
        [
            *(sys.executable, ROOT / "examples" / "load_once.py"),
            *("--scale", "0.1", "--output", picture),
        ],
        tmp_path,
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    number = r" +([\d.,]+)"
    rows = re.findall(rf"^(script|pool|cluster){4 * number}$", done.stdout, re.M)
    assert [who for who, *_ in rows] == ["script", "pool", "cluster"]
    file, shared = (sum(int(row[i].replace(",", "")) for row in rows) for i in (3, 4))
    assert shared < file / 2
    assert "Traceback" not in done.stderr
    assert files_in(directory) == []


def test_the_example_of_a_pool_passes_datasets_both_ways_without_a_copy(
    tmp_path: Path, directory: Path
) -> None:
    done = run(
        [sys.executable, ROOT / "examples" / "pool_of_datasets.py", "--scale", "0.01"], tmp_path
    )
    ways = re.findall(r"^(.*?)(?: +\d+\.\d\d){2}$", done.stdout, re.M)  # it has compared them
    assert ways == ["in this process", "pool of 2", "... import xshm.multiprocessing"]
    (size,) = re.findall(r"([\d,]+) MiB in all", done.stdout)
    ((sent, copied),) = re.findall(r"([\d,]+) MiB sent \(([\d,]+) MiB copied", done.stdout)
    (received,) = re.findall(r"([\d,]+) MiB received", done.stdout)
    assert copied == "0"
    assert min(int(sent), int(received)) >= 2 * int(size) * 0.99
    assert done.stderr == ""
    assert files_in(directory) == []


def test_the_example_of_a_camera_is_watched_to_its_end(tmp_path: Path, directory: Path) -> None:
    picture = tmp_path / "equator.png"
    done = run(
        [
            *(sys.executable, ROOT / "examples" / "camera.py"),
            *("--frames", "60", "--output", picture),
        ],
        tmp_path,
    )
    assert "wrote 60 frames" in done.stdout
    watched = re.findall(r"^(\w+): +saw (\d+) frames, missed (\d+), mean age", done.stdout, re.M)
    assert [who for who, *_ in watched] == ["statistic", "picture"]
    assert all(int(seen) > 0 and int(seen) + int(missed) == 60 for _, seen, missed in watched)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert done.stderr == ""
    assert files_in(directory) == []


# ---- commands ----


def commands_of(page: str, *words: str) -> list[str]:
    """Command lines in a page's ``bash`` blocks that have all these words."""
    lines = [
        line
        for block in BLOCKS
        if block.page == page and block.language == "bash"
        for line in block.text.splitlines()
    ]
    return [line for line in lines if all(word in line for word in words)]


def test_the_readme_starts_with_the_two_commands_that_ci_runs() -> None:
    first = [b for b in BLOCKS if b.page == "README.md"][:2]
    assert [b.language for b in first] == ["bash", "bash"]
    example, tests = (b.text.strip() for b in first)
    assert "examples/climate_trends.py" in example
    assert "pytest" in tests
    shown = run([ROOT / ".ci" / "run", "show"], ROOT).stdout
    assert shown.splitlines() == [example, tests]


@contextlib.contextmanager
def running(command: str, folder: Path) -> Iterator[None]:
    """A server of dask's command line; it must end in good order when asked to."""
    name, *arguments = shlex.split(command)
    log = folder / "log.txt"
    with log.open("a") as output:
        server = subprocess.Popen(
            [SCRIPTS / name, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0, log.read_text()
        finally:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


_ASK = """
import json, sys
import numpy as np
import xshm
from dask.distributed import Client, wait

with Client(sys.argv[1]) as client:
    client.wait_for_workers(2, timeout=60)
    first, second = client.scheduler_info()["workers"]
    x = client.submit(np.ones, 1_000_000, workers=[first])
    wait(x)
    total = client.submit(np.sum, x, workers=[second], allow_other_workers=False)
    assert total.result() == 1_000_000
    print(json.dumps(client.run(xshm.stats, workers=[first])[first]))
"""


def test_the_command_line_starts_a_cluster(tmp_path: Path) -> None:
    (start,) = commands_of("docs/dask.md", "dask scheduler", "--protocol shm")
    (join,) = commands_of("docs/dask.md", "dask worker", "shm://HOST:8786", "--nworkers")
    port = str(free_port())
    options = " --no-dashboard --host 127.0.0.1"
    start = f"{start}{options} --port {port}"
    join = join.replace("HOST:8786", f"127.0.0.1:{port}").replace("--nworkers 4", "--nworkers 2")
    with running(start, tmp_path):
        time.sleep(1)  # the worker asks again and again, but says so in its log
        with running(join + options, tmp_path):
            script = tmp_path / "ask.py"
            script.write_text(_ASK)
            told = json.loads(
                run([sys.executable, script, f"shm://127.0.0.1:{port}"], tmp_path).stdout
            )
    assert told["bytes_sent_by_handle"] == 8_000_000
    assert told["bytes_sent_inline"] == told["bytes_copied_in"] == 0


def test_the_command_that_removes_what_the_killed_left(directory: Path, tmp_path: Path) -> None:
    (command,) = commands_of("docs/dask.md", "xshm gc")
    run([sys.executable, "-c", "import xshm; xshm.enable()"], tmp_path)  # makes the folders
    (folder,) = directory.glob("xshm-*/segments")
    (folder / "0123456789abcdef.1.segment").write_bytes(bytes(4096))
    run(["bash", "-c", command], tmp_path)
    assert files_in(directory) == []


# ---- names ----

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
DEFAULTS = yaml.safe_load((Path(xshm.__file__).parent / "xshm.yaml").read_text())["xshm"]


def test_the_page_of_the_configuration_has_every_key_and_no_other() -> None:
    assert re.findall(r"^## `xshm\.(.*)`$", CONFIGURATION, re.MULTILINE) == list(DEFAULTS)


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_page_of_the_configuration_gives_default_and_variable(key: str, tmp_path: Path) -> None:
    section = CONFIGURATION.partition(f"## `xshm.{key}`\n")[2].partition("\n## ")[0]
    (default,) = re.findall(r"^- Default: `(.*)`$", section, re.MULTILINE)
    assert yaml.safe_load(default) == DEFAULTS[key]
    (variable,) = re.findall(r"^- Environment: `(.*)`$", section, re.MULTILINE)
    code = f"import xshm; from xshm import config; print(config.get({key!r}))"
    done = run(["env", f"{variable}=17", sys.executable, "-c", code], tmp_path)
    assert done.stdout.strip() == "17"


def test_the_design_has_the_invariants_that_the_code_quotes() -> None:
    design = " ".join((ROOT / "docs" / "design.md").read_text().split())
    quoted = 0
    for source in (*(ROOT / "xshm").rglob("*.py"), *(ROOT / "xshm").rglob("*.[ch]")):
        comments = re.sub(r"\s+(?:\*|#)?\s*", " ", source.read_text())
        for number, words in re.findall(r'Invariant (\d+), "([^"]*)"', comments):
            found = re.search(rf"(?<!\S){number}\. \*\*(.*?)(?= \d+\. \*\*| ## )", design)
            assert found, f"{source}: invariant {number}"
            text = found[1].replace("*", "").lower()
            assert words.lower() in text, f"{source}: {words}"
            quoted += 1
    assert quoted > 5


_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_statistics_are_all_explained() -> None:
    documentation: Any = xshm.stats.__doc__
    assert set(re.findall(r"``(\w+)``", documentation)) == set(xshm.stats())
