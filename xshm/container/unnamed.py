"""Containers without a name: they live for as long as some process has them open.

Each process that has one mapped has a link of its own to the file, ``segments/<id>.<n>.array``,
which goes with the mapping, or with the process. To hand it on, the process makes another link,
``<id>.<n>.message``, which the receiver renames to its own: in between, that one keeps the
container, also when its sender has ended.
"""

from __future__ import annotations

import contextlib
import os
import threading

from xshm import process, shortage
from xshm.container.handle import ContainerHandle
from xshm.directory import MESSAGE_NAME, configured
from xshm.errors import ContainerNameError

#: The links of this process, by the path in the handles that its arrays have. After a fork
#: these are the parent's, and the links are the child's.
_links: dict[str, str] = {}


class _Fork(threading.local):
    """What this thread does when it forks."""

    def __init__(self) -> None:
        #: Links for the child, by the same paths.
        self.links: dict[str, str] = {}


_fork = _Fork()


def is_unnamed(container: ContainerHandle) -> bool:
    """Whether a container has no name."""
    return container.path.endswith(".array")


def keep(draft: ContainerHandle) -> ContainerHandle:
    """Make a draft a container of this process's, until :func:`drop`."""
    return _linked(draft, f"{configured().path}/{draft.path}")


@shortage.told
def send(container: ContainerHandle) -> str:
    """Keep a container for somebody who will receive it.

    Returns
    -------
    str
        The name of the message, good for one receiver.

    Raises
    ------
    ContainerNotFoundError
        Somebody removed this process's link.
    """
    me = process.current()
    message = me.new_message()
    try:
        os.link(f"{me.directory.path}/{own(container).path}", f"{me.directory.segments}/{message}")
    except FileNotFoundError as error:
        raise container.not_found() from error
    return message


@shortage.told
def receive(message: str, container: ContainerHandle) -> ContainerHandle:
    """Make a container that was sent this process's, too, until :func:`drop`.

    Parameters
    ----------
    message : str
    container : ContainerHandle
        As the sender has it: while that has it open, a message can be received again.

    Raises
    ------
    ContainerNotFoundError
        The message was received before, and the sender has closed the container or ended.
    """
    here = container.directory()
    if not MESSAGE_NAME.fullmatch(message):
        raise ContainerNameError(f"expected the name of a message, found {message[:200]!r}")
    with contextlib.suppress(FileNotFoundError):
        return _linked(container, f"{here.segments}/{message}")
    again = f"{here.segments}/{process.current().new_message()}"
    try:
        os.link(f"{here.path}/{container.path}", again)
    except FileNotFoundError as error:
        raise container.not_found() from error
    return _linked(container, again)


def _linked(container: ContainerHandle, file: str) -> ContainerHandle:
    process.keep_open()
    link = str(process.current().new_array())
    os.rename(file, link)
    path = _path_of(link)
    _links[path] = link
    return container._replace(path=path)


def _path_of(link: str) -> str:
    """What a handle says of a link: its path from the user's directory."""
    return "/".join(link.rsplit("/", 2)[-2:])


def own(container: ContainerHandle) -> ContainerHandle:
    """The handle by which others find a container while this process has it open."""
    link = _links.get(container.path)
    return container if link is None else container._replace(path=_path_of(link))


def drop(container: ContainerHandle) -> None:
    """This process has a container open no longer."""
    link = _links.pop(container.path, None)
    if link is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)


def _before_fork() -> None:
    # By now, since the parent may end before the child runs. Where there is no room for a link,
    # the child has the array, and cannot hand it on. Another thread may just have dropped one.
    _fork.links = {}
    for path, link in [*_links.items()]:
        with contextlib.suppress(OSError):
            me = process.current()
            message = f"{me.directory.segments}/{me.new_message()}"
            os.link(link, message)
            _fork.links[path] = message


def _in_child() -> None:
    _links.clear()
    for path, message in _fork.links.items():
        with contextlib.suppress(OSError):
            process.keep_open()
            link = str(process.current().new_array())
            os.rename(message, link)
            _links[path] = link


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
