"""What docs/coming-from.md promises: the same results, and none of the limits that are said gone.

The other tools' own programs run where they are installed; none of them is needed by xshm.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.managers import SharedMemoryManager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xshm
from tests.conftest import files_in, same_bytes
from tests.test_docs import ROOT, Block, blocks_of, run, skip_where_not_installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

SHARED_MEMORY = Path("/dev/shm")


# ---- the page ----

PAIRS = [
    (other, ours)
    for other, ours in itertools.pairwise(blocks_of(ROOT / "docs" / "coming-from.md"))
    if (other.language, ours.language) == ("py", "python")
]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the other tools' programs leave in places of their own is removed."""
    before = set(os.listdir(SHARED_MEMORY))
    with tempfile.TemporaryDirectory() as folder:  # a short path: Ray puts sockets there
        monkeypatch.setenv("HOME", folder)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield
    for name in set(os.listdir(SHARED_MEMORY)) - before:
        if re.fullmatch(r"forecast\.nc|levels|camera(_[0-9a-f]{32})?", name):
            (SHARED_MEMORY / name).unlink()


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize(("other", "ours"), PAIRS, ids=str)
def test_both_programs_of_a_section_print_the_same(
    other: Block, ours: Block, tmp_path: Path
) -> None:
    """That ours prints what the page says is tested with the other pages."""
    skip_where_not_installed(other)
    script = tmp_path / "other.py"
    script.write_text(other.text)
    assert run([sys.executable, script], tmp_path).stdout == ours.output


def test_each_section_has_both_programs() -> None:
    page = (ROOT / "docs" / "coming-from.md").read_text()
    sections = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert len(PAIRS) == len(sections)


# ---- programs of their own ----


def python(code: str, folder: Path) -> str:
    """What a program prints that knows nothing of this process; it may not warn."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(code))
    done = run([sys.executable, "-W", "default::ResourceWarning", script], folder)
    assert done.stderr == ""
    return done.stdout


@contextlib.contextmanager
def running(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Such a program while it runs: it is asked and told by lines. It is killed in the end."""
    script = folder / "running.py"
    script.write_text(textwrap.dedent(code))
    program = subprocess.Popen(
        [sys.executable, "-u", "-W", "default::ResourceWarning", script],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with program:
        try:
            yield program
        finally:
            program.kill()


def said(program: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


def tell(program: subprocess.Popen[str], line: str = "") -> None:
    """Give it a line."""
    assert program.stdin is not None
    program.stdin.write(f"{line}\n")
    program.stdin.flush()


METHODS = ["fork", "spawn", "forkserver"]
#: A fork server keeps the directory of the test that started it: only programs have one.
METHODS_HERE = ["fork", "spawn"]


# ---- shared-ndarray2 ----


def test_three_ways_to_construct() -> None:
    x = np.arange(6.0).reshape(2, 3)
    copied = xshm.SharedArray.from_array(x, "three")
    made = xshm.SharedArray.from_shape((2, 3), np.int16)
    attached = xshm.SharedArray("three")  # shape and dtype need not be told
    assert same_bytes(np.asarray(copied), x)
    assert (made.shape, made.dtype) == ((2, 3), np.dtype(np.int16))
    assert not made.any()
    attached[0, 0] = 9
    assert copied[0, 0] == 9
    assert x[0, 0] == 0
    copied.unlink()


def test_a_block_that_exists_is_seen_as_an_array() -> None:
    block = SharedMemory(create=True, size=24)
    try:
        view = xshm.asarray(block, np.float64, (3,))
        view[:] = 2
        assert xshm.asarray(block.name, np.float64, 3).tolist() == [2, 2, 2]
        del view
    finally:
        block.close()
        block.unlink()


def test_methods_and_arithmetic_need_no_get() -> None:
    a = xshm.SharedArray.from_array(np.arange(4.0))
    target = np.zeros(4)
    target[:] = a
    assert target.tolist() == [0, 1, 2, 3]
    assert (a + 1).tolist() == [1, 2, 3, 4]
    assert a.mean() == 1.5
    assert np.sqrt(a)[1] == 1
    a *= 2
    assert a[1:3].tolist() == [2, 4]
    assert np.shares_memory(a.get(), np.asarray(a))


def add_one(a: xshm.SharedArray[Any], lock: xshm.Lock, times: int) -> None:
    """What goes wrong without the lock: others add meanwhile."""
    for _ in range(times):
        with lock:
            before = a[0]
            time.sleep(0.001)
            a[0] = before + 1


@pytest.mark.parametrize("method", METHODS_HERE)
def test_the_lock_passes_to_a_pool(method: str) -> None:
    a = xshm.SharedArray.zeros(1, np.int64)
    with multiprocessing.get_context(method).Pool(3) as pool:
        pool.starmap(add_one, [(a, a.lock, 20)] * 15, chunksize=1)
        pool.close()
        pool.join()
    assert a[0] == 300


def test_a_child_that_outlives_the_managers_block_keeps_the_array_and_nobody_warns(
    tmp_path: Path, directory: Path
) -> None:
    told = python(
        """
        import multiprocessing
        from multiprocessing.managers import SharedMemoryManager

        import numpy as np

        import xshm

        def late(a, begun, ended):
            begun.set()
            ended.wait()
            a[0] += 1
            print(a.tolist())

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            begun, ended = context.Event(), context.Event()
            with SharedMemoryManager() as manager:
                a = xshm.SharedArray.from_array(np.arange(3), manager=manager)
                child = context.Process(target=late, args=(a, begun, ended))
                child.start()
                begun.wait()
            del a
            ended.set()
            child.join()
            assert child.exitcode == 0
        """,
        tmp_path,
    )
    assert told == "[1, 1, 2]\n"
    assert files_in(directory) == []


def test_the_managers_block_frees() -> None:
    with SharedMemoryManager() as manager:
        a = xshm.SharedArray.from_array(np.arange(3.0), "managed", manager=manager)
        assert a.sum() == 3
        assert [shared.name for shared in xshm.list()] == ["managed"]
    assert xshm.list() == []


@pytest.mark.parametrize(
    "x",
    [
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.array([(1, 2.5), (3, 4.5)], "i4,f8"),
        np.array(["2020-02-29"], "M8[D]"),
        np.array(3.5),
        np.zeros((0, 3)),
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_every_dtype_of_fixed_size_every_shape_and_order(x: np.ndarray[Any, Any]) -> None:
    with xshm.SharedArray.from_array(x, "kinds"):
        found = np.asarray(xshm.SharedArray("kinds"))
        assert same_bytes(found, x)
        assert found.flags.f_contiguous == x.flags.f_contiguous


# ---- SharedArray ----


def test_create_attach_list_and_delete_by_name(tmp_path: Path) -> None:
    a = xshm.SharedArray.zeros((2, 3), np.float32, name="levels")
    told = python(
        """
        import xshm

        a = xshm.SharedArray("levels")
        print(a.shape, a.dtype, a.sum())
        a[1] = 5
        """,
        tmp_path,
    )
    assert told == "(2, 3) float32 0.0\n"
    assert a.tolist() == [[0, 0, 0], [5, 5, 5]]
    assert [(s.name, s.kind) for s in xshm.list()] == [("levels", "ndarray")]
    with pytest.raises(xshm.ContainerExistsError):
        xshm.SharedArray.zeros(3, name="levels")
    xshm.unlink("levels")
    with pytest.raises(xshm.ContainerNotFoundError):
        xshm.SharedArray("levels")
    a[0] = 1  # who has it keeps it
    assert a.sum() == 18


def test_a_named_array_stays_when_its_maker_ends(tmp_path: Path) -> None:
    code = "import xshm; xshm.SharedArray.full(3, 7, name='stays'); xshm.SharedArray.zeros(3)"
    python(code, tmp_path)
    assert xshm.SharedArray("stays").tolist() == [7, 7, 7]
    xshm.unlink("stays")


def test_reading_only_is_opening() -> None:
    with xshm.SharedArray.zeros(3, name="looked at") as a:
        mine = xshm.open("looked at")
        mine[0] = 1
        assert a.tolist() == [0, 0, 0]


def test_an_array_without_a_name_goes_with_a_killed_process(
    tmp_path: Path, directory: Path
) -> None:
    code = """
        import numpy as np

        import xshm

        a = xshm.SharedArray.from_array(np.ones(100_000))
        print("made")
        input()
        """
    with running(code, tmp_path) as program:
        assert said(program) == "made"
        assert any(name.endswith(".array") for name in files_in(directory))
        program.send_signal(signal.SIGKILL)
        program.wait()
    xshm.SharedArray.zeros(1).close()  # the next process that uses xshm looks after the dead
    assert not any(name.endswith(".array") for name in files_in(directory))


# ---- ndsharray ----


def test_writer_and_reader_in_unrelated_programs(tmp_path: Path) -> None:
    code = """
        import numpy as np

        import xshm

        reader = xshm.Channel("tag")  # there is no writer yet
        print(reader.read())
        for snapshot in reader:
            x = snapshot.value
            print(snapshot.version, x.dtype.str, x.shape, x.tolist())
        """
    frames = [
        np.arange(3.0),
        np.ones((2, 2), np.uint8),  # the shape and the dtype change on the go
        np.array(["one", "three"]),
        np.array([b"bytes"]),
        np.array([(1, 2.5)], "i4,f8"),
        np.array(["2020-01-01"], "M8[D]"),
    ]
    with running(code, tmp_path) as program:
        assert said(program) == "None"
        with xshm.Channel("tag") as writer:
            for version, x in enumerate(frames, 1):
                writer.write(x)
                assert said(program) == f"{version} {x.dtype.str} {x.shape} {x.tolist()}"
        assert program.wait(60) == 0  # the channel is gone


def test_age_validity_and_what_was_missed() -> None:
    with xshm.Channel("tag") as writer:
        reader = xshm.Channel("tag")
        assert reader.read() is None
        for i in range(5):
            writer.write(np.full(3, i))
        snapshot = reader.wait(timeout=60)
        assert snapshot is not None
        assert (snapshot.version, snapshot.missed, snapshot.writer_alive) == (5, 4, True)
        assert snapshot.age >= 0
        assert snapshot.value.tolist() == [4, 4, 4]
        snapshot.value[:] = 7  # a frame is the reader's own
        again = reader.read()
        assert again is not None
        assert again.value.tolist() == [4, 4, 4]


def test_a_reader_sleeps_until_there_is_something() -> None:
    reader = xshm.Channel("tag")
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    assert reader.wait(timeout=0.5) is None
    naps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
    assert naps < 20  # who polls each millisecond has 500
    reader.unlink()


def test_labelled_arrays_and_asynchronous_readers() -> None:
    frame = xr.Dataset({"t": ("x", [1.0, 2.0])}, {"x": ["a", "b"]}, {"title": "frame"})

    async def first_of(channel: xshm.Channel) -> xshm.Snapshot:
        return await anext(aiter(channel))

    with xshm.Channel("tag") as writer:
        writer.write(frame)
        assert asyncio.run(first_of(xshm.Channel("tag"))).value.identical(frame)


def test_a_frame_that_is_held_stays_as_it_is() -> None:
    with xshm.Channel("tag") as writer:
        reader = xshm.Channel("tag")
        kept = []
        for i in range(4):
            writer.write(np.full(300_000, i))
            snapshot = reader.read()
            assert snapshot is not None
            kept.append(snapshot.value)
        assert [np.unique(x).tolist() for x in kept] == [[0], [1], [2], [3]]


def test_many_readers_and_every_frame_is_whole(tmp_path: Path) -> None:
    code = """
        import numpy as np

        import xshm

        print("ready")
        versions = []
        for snapshot in xshm.Channel("tag"):
            assert (snapshot.value == snapshot.version).all(), "a torn frame"
            versions.append(snapshot.version)
        assert versions == sorted(set(versions))
        print(versions[-1])
        """
    last = 300
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(running(code, tmp_path)) for _ in range(3)]
        assert [said(reader) for reader in readers] == ["ready"] * 3
        writer = xshm.Channel("tag")
        for version in range(1, last + 1):
            writer.write(np.full(200_000 + version % 3, version))
        writer.close()
        assert [said(reader) for reader in readers] == [str(last)] * 3
        for reader in readers:
            assert reader.wait(60) == 0
    writer = xshm.Channel("tag")
    writer.unlink()


# ---- multiprocessing.Array and Value ----
# In programs of their own: multiprocessing keeps the memory of these until its process ends.


def test_the_types_are_those_of_c(tmp_path: Path) -> None:
    """The table of 2008 took a long for 32 bits, and a wide character for 16."""
    python(
        """
        import ctypes
        import multiprocessing

        import xshm

        for code in "bBhHiIlLqQfdu":
            shared = multiprocessing.Array(code, 3)
            view = xshm.asarray(shared)
            assert view.nbytes == ctypes.sizeof(shared.get_obj()), code
            assert view.shape == (3,), code
        text = multiprocessing.Array("u", "a\u00f1\U0001f40d")
        assert xshm.asarray(text).tolist() == ["a", "\u00f1", "\U0001f40d"]
        """,
        tmp_path,
    )


@pytest.mark.parametrize("method", METHODS)
def test_structures_and_values_are_written_by_children(method: str, tmp_path: Path) -> None:
    told = python(
        f"""
        import ctypes
        import multiprocessing

        import xshm

        class Point(ctypes.Structure):
            _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_int8)]

        def move(points, count):
            with points.get_lock():
                xshm.asarray(points)["x"] += 1
            with count.get_lock():
                xshm.asarray(count)[...] += 1

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            points, count = context.Array(Point, [(1, 2), (3, 4)]), context.Value("i", 7)
            children = [context.Process(target=move, args=(points, count)) for _ in range(2)]
            for child in children:
                child.start()
            for child in children:
                child.join()
            print(xshm.asarray(points).tolist(), xshm.asarray(count).shape, count.value)
        """,
        tmp_path,
    )
    assert told == "[(3.0, 2), (5.0, 4)] () 9\n"


def fill(a: Any) -> None:
    """In a task."""
    a[1] = 7


def test_what_only_processes_inherit_can_be_sent_to_a_task() -> None:
    a = xshm.SharedArray.zeros(6)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(RuntimeError, match="inheritance"):
            pool.apply(fill, (multiprocessing.Lock(),))
        pool.apply(fill, (a.reshape(2, 3),))  # a view is the same memory there, too
        pool.close()
        pool.join()
    assert a.tolist() == [0, 0, 0, 7, 7, 7]


# ---- multiprocessing.shared_memory, and strings ----


@pytest.mark.parametrize("dtype", ["U6", "S6", ">U6"])
def test_arrays_of_strings(dtype: str, tmp_path: Path) -> None:
    x = np.array([["Red", "Green"], ["Purple", "Orange"]], dtype).T
    with xshm.SharedArray.from_array(x, "colours") as a:
        assert same_bytes(np.asarray(a), x)
        python("import xshm; xshm.SharedArray('colours')[0, 1] = 'Yellowish'", tmp_path)
        expected = x.copy()
        expected[0, 1] = "Yellow"  # cut, as by NumPy
        assert same_bytes(np.asarray(a), expected)


def test_strings_of_no_fixed_size_are_refused_with_advice() -> None:
    for x in np.array(["a", "b"], object), np.array(["a", "b"], "T"):
        with pytest.raises(xshm.UnsupportedError, match="'U'"):
            xshm.SharedArray.from_array(x)


def test_an_unrelated_program_that_looks_at_a_block_leaves_it_there(tmp_path: Path) -> None:
    block = SharedMemory(create=True, size=16)
    try:
        code = f"import xshm; print(xshm.asarray({block.name!r}, 'i8').tolist())"
        xshm.asarray(block, np.int64)[:] = 5
        assert python(code, tmp_path) == "[5, 5]\n"
        assert (SHARED_MEMORY / block.name).exists()
    finally:
        block.close()
        block.unlink()


# ---- one buffer, several views ----


@pytest.mark.parametrize("method", METHODS_HERE)
def test_views_of_one_buffer_share_bytes_and_lock(method: str) -> None:
    octets = xshm.SharedArray.zeros(8, np.uint8)
    words = octets.view(np.uint32)
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.starmap(add_one, [(words, words.lock, 10), (octets, octets.lock, 10)], chunksize=1)
        with octets.lock:
            waiting = pool.apply_async(add_one, (words, words.lock, 1))
            with pytest.raises(multiprocessing.TimeoutError):
                waiting.get(0.2)
        waiting.get(60)
        pool.close()
        pool.join()
    assert octets.tolist() == [21, 0, 0, 0, 0, 0, 0, 0]
    assert words.tolist() == [21, 0]


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    code = """
        import xshm

        a = xshm.SharedArray("locked")
        a.lock.acquire()
        print("held")
        input()
        """
    with xshm.SharedArray.zeros(1, name="locked") as a, running(code, tmp_path) as program:
        assert said(program) == "held"
        assert not a.lock.acquire(timeout=0)
        program.kill()
        assert a.lock.acquire(timeout=60)
        a.lock.release()


# ---- joblib, torch.multiprocessing, Datasets in a pool ----

POOLS = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import xarray as xr

import xshm
import xshm.multiprocessing

def changed(x):
    x += 1
    return x

def there_and_back(apply):
    before = xshm.stats()["bytes_copied_in"]
    x = np.ones(1_000_000)
    assert (apply(changed, x) == 2).all() and (x == 1).all()
    ds = xr.Dataset({"t": ("i", x, {"units": "K"})}, {"i": np.arange(1_000_000)})
    result = apply(changed, ds)
    assert result.identical(ds + 1) and (x == 1).all()
    assert xshm.stats()["bytes_copied_in"] == before, "the values were copied to be sent"
    result.t[:] = 5  # what comes back is one's own

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(1) as pool:
        there_and_back(lambda f, x: pool.apply(f, (x,)))
        pool.close()
        pool.join()
    with ProcessPoolExecutor(1, context) as pool:
        there_and_back(lambda f, x: pool.submit(f, x).result())
    print("done")
"""


@pytest.mark.parametrize("method", METHODS)
def test_arguments_and_results_of_pools_are_not_copied(
    method: str, tmp_path: Path, directory: Path
) -> None:
    script = tmp_path / "pools.py"
    script.write_text(POOLS)
    done = run([sys.executable, script, method], tmp_path)
    assert done.stdout == "done\n"
    assert "Traceback" not in done.stderr
    assert files_in(directory) == []


def test_a_shared_array_in_the_tasks_of_joblib(tmp_path: Path, directory: Path) -> None:
    pytest.importorskip("joblib")
    script = tmp_path / "tasks.py"
    script.write_text("""
import numpy as np
from joblib import Parallel, delayed

import xshm

def add(a, i):
    with a.lock:
        a[0] += i

a = xshm.SharedArray.zeros(300_000)
Parallel(n_jobs=2)(delayed(add)(a, i) for i in range(10))
print(a[0])
""")
    assert run([sys.executable, script], tmp_path).stdout == "45.0\n"
    assert files_in(directory) == []


@pytest.mark.parametrize("method", METHODS)
def test_who_put_an_array_into_a_queue_may_end_before_it_is_read(
    method: str, tmp_path: Path, directory: Path
) -> None:
    told = python(
        f"""
        import multiprocessing

        import numpy as np

        import xshm.multiprocessing

        def produce(queue):
            queue.put((xshm.SharedArray.full(3, 7), np.full(300_000, 8)))

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            queue = context.Queue()
            producer = context.Process(target=produce, args=(queue,))
            producer.start()
            producer.join()
            shared, own = queue.get()
            print(shared.tolist(), np.unique(own).tolist())
        """,
        tmp_path,
    )
    assert told == "[7, 7, 7] [8]\n"
    assert files_in(directory) == []


# ---- Ray ----


def doubled(name: str) -> float:
    """A task that writes to what is shared."""
    x = xshm.open(name)
    x *= 2
    return float(x.sum())


def test_what_is_opened_can_be_written_to_and_stays_as_it_was_for_others() -> None:
    context = multiprocessing.get_context("spawn")
    with (
        xshm.publish(np.ones(300_000), "x") as shared,
        ProcessPoolExecutor(2, context) as pool,
    ):
        assert [*pool.map(doubled, ["x"] * 4)] == [600_000.0] * 4
        assert shared.open().sum() == 300_000
