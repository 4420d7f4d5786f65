"""The scheme ``shm://`` for distributed: its addresses, connector and listener.

distributed finds :class:`ShmBackend` through the entry point ``distributed.comm.backends``.
Addresses, sockets and ports are those of ``tcp://``.
"""

from __future__ import annotations

from typing import Any

from distributed.comm.core import FatalCommClosedError
from distributed.comm.tcp import TCPBackend, TCPConnector, TCPListener

from xshm import allocation, process
from xshm.dask.comm import Shm
from xshm.errors import DirectoryError


class ShmConnector(TCPConnector):
    prefix = "shm://"
    comm_class = Shm

    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> Shm:
        try:
            process.hold(self)
            comm: Shm = await super().connect(address, deserialize, **connection_args)
        except DirectoryError as error:  # trying again, as distributed does, will not help
            raise FatalCommClosedError(str(error)) from error
        finally:
            process.release(self)
        return comm


class ShmListener(TCPListener):
    """Listens like TCP; while it does, this process's place in the directory is kept.

    Notes
    -----
    NumPy's allocator is set in the context in which the server starts. All that the server
    does later runs in copies of that context: handlers of connections, tasks in the
    worker's threads (distributed copies the context into its executors). So their arrays
    are born in segments, and the user's own threads keep NumPy's allocator.
    """

    prefix = "shm://"
    comm_class = Shm

    async def start(self) -> None:
        process.hold(self)
        allocation.use_here()
        await super().start()

    def stop(self) -> None:
        super().stop()
        process.release(self)


class ShmBackend(TCPBackend):
    _connector_class = ShmConnector
    _listener_class = ShmListener
