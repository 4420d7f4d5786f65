"""Errors of xshm: all are ``XshmError``, and the built-in error that fits."""


class XshmError(Exception):
    """Base of every error that xshm raises on its own account."""


class DirectoryError(XshmError, OSError):
    """The directory for segments cannot be used: not ours, a link, or not to be made."""


class HandleError(XshmError, OSError):
    """A handle is malformed, or points outside its segment. Nothing was opened or kept.

    A connection of dask that it came over ends with distributed's ``CommClosedError``.
    """


class LostHandleError(HandleError):
    """The segment of a handle is gone: taken by somebody else, withdrawn, or its owner died.

    Dask takes the connection for lost and asks for the data again.
    """


class FormatError(XshmError, ValueError):
    """A file is not a container, or is damaged, or of a newer version. Nothing was read from it."""


class UnsupportedError(XshmError, TypeError):
    """An object holds something that a container cannot hold. Nothing was written."""


class ContainerNameError(XshmError, ValueError):
    """A text that cannot be the name of a container, a channel or a lock."""


class ContainerExistsError(XshmError, FileExistsError):
    """A container of that name exists, and was not to be replaced."""


class ContainerNotFoundError(XshmError, FileNotFoundError):
    """There is no container of that name, or another one stands in its place by now."""


class NoRoomError(XshmError, OSError):
    """The directory has not as much room, or not as many files, as something needs.

    Nothing was left behind.
    """


class LimitError(XshmError, OSError):
    """The process, or the system, has no more open files, memory mappings or memory.

    Nothing was left behind.
    """


class LayoutError(XshmError, ValueError):
    """A dtype, shape, offset or size that does not fit the bytes, or that no array can have."""


class ClosedError(XshmError, ValueError):
    """Something is used after it was closed, as with a closed file."""


class LockError(XshmError, RuntimeError):
    """A lock is released that is not held, or taken in a way that would wait for itself."""


class WriterError(XshmError, RuntimeError):
    """A channel has a living writer already, or this object is not the one that writes."""


class ChannelNotFoundError(XshmError, FileNotFoundError):
    """A channel was removed since it was opened."""


class SharedMemoryNotFoundError(XshmError, FileNotFoundError):
    """There is no ``multiprocessing`` ``SharedMemory`` of that name."""
