"""``xshm.report``: what the workers of a cluster have exchanged, and what they hold."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes

from xshm.statistics import stats_and_room
from xshm.tables import printable, table

if TYPE_CHECKING:  # `import xshm` is not to import it
    from distributed import Client

_SCHEMES = ("shm", "shms")

_Table = tuple[Sequence[str], Sequence[Sequence[object]]]


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """One worker.

    Attributes
    ----------
    name : str
    memory, spilled : int
        Bytes in memory and on disk, as distributed counted them at the last heartbeat.
    memory_limit : int
        Bytes; 0 if there is no limit.
    stats : dict of str to int
        What :func:`xshm.stats` tells in the worker's process. Workers of one process tell the same.
    domain : str or None
        The directory that it uses: a key of :attr:`Report.rooms`.
    remark : str
        Why nothing is told of shared memory (then `stats` is empty and `domain` is None), or only
        what was told with the last heartbeat; empty otherwise.
    """

    name: str
    memory: int
    spilled: int
    memory_limit: int
    stats: dict[str, int]
    domain: str | None
    remark: str


@dataclasses.dataclass(frozen=True)
class Room:
    """One directory, and the workers that share it.

    Attributes
    ----------
    directory : str
    hosts, workers : list of str
        The workers' hosts and addresses.
    size, free : int
        Bytes of the file system, which others may use too.
    """

    directory: str
    hosts: list[str]
    workers: list[str]
    size: int
    free: int


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What :func:`report` found; it shows itself as tables, in notebooks too.

    Attributes
    ----------
    scheduler : str
        Its address.
    workers : dict of str to WorkerReport
        By address.
    rooms : dict of str to Room
        By domain: what sees the same directory shares its room.
    """

    scheduler: str
    workers: dict[str, WorkerReport]
    rooms: dict[str, Room]

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists of numbers and texts, as JSON has them."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        return "\n\n".join([self._head(), *(table(heads, *rows) for heads, rows in self._tables())])

    def _repr_html_(self) -> str:
        return f"<p>{escape(printable(self._head()))}</p>" + "".join(
            _html_of(heads, rows) for heads, rows in self._tables()
        )

    def _head(self) -> str:
        return f"{len(self.workers)} workers of {self.scheduler}"

    def _tables(self) -> Iterator[_Table]:
        if self.rooms:
            yield (
                ("DIRECTORY", "SEEN BY", "WORKERS", "SIZE", "USED", "FREE"),
                [
                    (
                        room.directory,
                        ", ".join(room.hosts),
                        len(room.workers),
                        *map(format_bytes, (room.size, room.size - room.free, room.free)),
                    )
                    for room in self.rooms.values()
                ],
            )
        yield (
            ("MEMORY OF", "NOW", "LIMIT", "SPILLED", "REMARK"),
            [
                (
                    worker.name,
                    format_bytes(worker.memory),
                    format_bytes(worker.memory_limit) if worker.memory_limit else "none",
                    format_bytes(worker.spilled),
                    worker.remark,
                )
                for worker in self.workers.values()
            ],
        )
        told = [worker for worker in self.workers.values() if worker.stats]
        if told:
            yield _table_of(told, "SEGMENTS OF", _SEGMENTS, _count)
            yield _table_of(told, "SENT BY", _SENT, _size)
            yield _table_of(told, "RECEIVED BY", _RECEIVED, _size)


#: Columns of the tables, and whose numbers they have.
_SEGMENTS = {"LIVE": "live", "LEASED": "leased", "FREE": "free", "WAITING": "waiting"}
_SENT = {
    "AS HANDLES": "bytes_sent_by_handle",
    "COPIED FIRST": "bytes_copied_in",
    "SMALL": "bytes_sent_small",
    "OTHER DOMAIN": "bytes_sent_to_other_domain",
    "NO ROOM": "bytes_sent_without_room",
}
_RECEIVED = {
    "AS HANDLES": "bytes_received_by_handle",
    "SMALL": "bytes_received_small",
    "LARGE AS BYTES": "bytes_received_inline",
}


def _table_of(
    workers: Sequence[WorkerReport], head: str, columns: dict[str, str], cell: Any
) -> _Table:
    rows = [(w.name, *(cell(w.stats, key) for key in columns.values())) for w in workers]
    return (head, *columns), rows


def _size(stats: dict[str, int], key: str) -> str:
    return str(format_bytes(stats[key]))


def _count(stats: dict[str, int], state: str) -> str:
    return f"{format_bytes(stats[f'{state}_bytes'])} in {stats[f'{state}_segments']}"


def _html_of(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        texts = (escape(printable(str(cell))) for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(heads, 'th')}</thead><tbody>{body}</tbody></table>"


def report(client: Client, timeout: float = 10) -> Report:
    """Ask the workers of a cluster what they have exchanged, and what they hold.

    Parameters
    ----------
    client : distributed.Client
        If it is asynchronous, await the result.
    timeout : float, optional
        How many seconds to wait for a worker that hangs.

    Returns
    -------
    Report
        Workers that do not use ``shm://`` or ``shms://``, have an older version of xshm, or do not
        answer, have a remark that says so.

    See Also
    --------
    stats

    Examples
    --------
    In a notebook the last line of a cell shows it::

        xshm.report(client)

    In a program::

        for worker in xshm.report(client).workers.values():
            print(worker.name, worker.stats["bytes_sent_by_handle"])
    """
    told: Report = client.sync(_ask, client, timeout)
    return told


def _order(name: Any) -> tuple[bool, Any]:
    # Some clusters count their workers, 2 before 10; a name may be anything.
    return (False, name) if isinstance(name, int) else (True, str(name))


async def _ask(client: Client, timeout: float) -> Report:
    scheduler = await client.scheduler.identity()
    found = sorted(scheduler["workers"].items(), key=lambda item: _order(item[1]["name"]))
    answers = await asyncio.gather(
        *(_answer(client, address, worker, timeout) for address, worker in found)
    )
    workers: dict[str, WorkerReport] = {}
    rooms: dict[str, Room] = {}
    for (address, worker), (told, remark) in zip(found, answers, strict=True):
        stats, domain = dict(told), None
        if stats:
            domain, directory = stats.pop("domain"), stats.pop("directory")
            size, free = stats.pop("directory_size"), stats.pop("directory_free")
            room = rooms.setdefault(domain, Room(directory, [], [], size, free))
            room.workers.append(address)
            if worker["host"] not in room.hosts:
                room.hosts.append(worker["host"])
        workers[address] = WorkerReport(
            name=str(worker["name"]),
            memory=worker["metrics"]["memory"],
            spilled=worker["metrics"]["spilled_bytes"]["disk"],
            memory_limit=worker["memory_limit"] or 0,
            stats=stats,
            domain=domain,
            remark=remark,
        )
    return Report(scheduler["address"], workers, rooms)


async def _answer(
    client: Client, address: str, worker: dict[str, Any], timeout: float
) -> tuple[dict[str, Any], str]:
    """What a worker tells, as `stats_and_room`, and a remark."""
    if address.partition("://")[0] not in _SCHEMES:
        return {}, "not shm"
    if "xshm" not in worker["metrics"]:
        return {}, "has an older version of xshm: install the one that is here"
    try:
        asked = client.run(stats_and_room, workers=[address])
        return (await asyncio.wait_for(asked, timeout))[address], ""
    except TimeoutError:
        reason = f"no answer in {timeout} s"
    except OSError as error:  # it has just ended
        reason = f"no answer: {error}"
    return worker["metrics"]["xshm"], f"{reason}; numbers of its last heartbeat"
