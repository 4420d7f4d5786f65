"""Names that users give to what is kept in the directory: each is the name of a file."""

from __future__ import annotations

import reprlib

from xshm.errors import ContainerNameError

_MAX_NAME = 200  # bytes: file names have 255


def check(name: object, of: str) -> str:
    """A name that a file can have, and that is not a path.

    Parameters
    ----------
    name : object
    of : str
        What it is to be the name of, for the error.

    Raises
    ------
    ContainerNameError
        It is empty, too long, has a slash or a control character, or starts with a dot.
    """
    if (
        isinstance(name, str)
        and name.isprintable()  # so that it can be encoded, too
        and 0 < len(name.encode()) <= _MAX_NAME
        and "/" not in name
        and not name.startswith(".")
    ):
        return str(name)
    raise ContainerNameError(
        f"expected the name of a {of}, found {reprlib.repr(name)}: a text of at most "
        f"{_MAX_NAME} bytes, without slashes and control characters, that does not start with a "
        "dot. It is not the path of a file"
    )
