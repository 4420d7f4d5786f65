"""The schemes ``shm://`` and ``shms://`` for distributed: addresses, connectors, listeners.

distributed finds the backends through the entry point ``distributed.comm.backends``. Addresses,
sockets and ports are those of ``tcp://`` and ``tls://``.
"""

from __future__ import annotations

from typing import Any

from distributed.comm.core import FatalCommClosedError
from distributed.comm.tcp import (
    BaseTCPConnector,
    BaseTCPListener,
    TCPBackend,
    TCPConnector,
    TCPListener,
    TLSBackend,
    TLSConnector,
    TLSListener,
)

from xshm import allocation, process
from xshm.dask.comm import Shm, Shms
from xshm.dask.memory import account_for, account_no_more_for
from xshm.dask.metrics import tell_of
from xshm.errors import DirectoryError


class _Connector(BaseTCPConnector):
    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> Shm:
        try:
            process.hold(self)
            comm: Shm = await super().connect(address, deserialize, **connection_args)
        except DirectoryError as error:  # trying again, as distributed does, will not help
            raise FatalCommClosedError(str(error)) from error
        finally:
            process.release(self)
        return comm


class _Listener(BaseTCPListener):
    """Listens like TCP; while it does, this process's place in the directory is kept.

    Notes
    -----
    NumPy's allocator is set in the context in which the server starts. All that the server
    does later runs in copies of that context: handlers of connections, tasks in the
    worker's threads (distributed copies the context into its executors). So their arrays
    are born in segments, and the user's own threads keep NumPy's allocator.
    """

    async def start(self) -> None:
        process.hold(self)
        allocation.use_here()
        account_for(self._server)
        tell_of(self._server)
        await super().start()

    def stop(self) -> None:
        super().stop()
        account_no_more_for(self._server)
        process.release(self)

    @property
    def _server(self) -> object:
        return getattr(self.comm_handler, "__self__", None)


class ShmConnector(_Connector, TCPConnector):
    prefix = "shm://"
    comm_class = Shm


class ShmListener(_Listener, TCPListener):
    prefix = "shm://"
    comm_class = Shm


class ShmBackend(TCPBackend):
    _connector_class = ShmConnector
    _listener_class = ShmListener


class ShmsConnector(_Connector, TLSConnector):
    prefix = "shms://"
    comm_class = Shms


class ShmsListener(_Listener, TLSListener):
    prefix = "shms://"
    comm_class = Shms


class ShmsBackend(TLSBackend):
    _connector_class = ShmsConnector
    _listener_class = ShmsListener
