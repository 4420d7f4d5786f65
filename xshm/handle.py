"""The handle: what travels in place of an array's bytes."""

from __future__ import annotations

import errno
import re
from typing import Any, NamedTuple

from xshm.directory import SEGMENT_NAME, TOKEN_NAME
from xshm.errors import HandleError

_MAX_OFFSET = 2**63 - 1


class Handle(NamedTuple):
    """Where the bytes of one hand-over are.

    Attributes
    ----------
    token : str
        Name of the hard link made for this hand-over; it is used up by taking it.
    segment : str
        Name of the segment, by which its leases can be handed on.
    offset, nbytes : int
        Which bytes of it.
    """

    token: str
    segment: str
    offset: int
    nbytes: int

    @classmethod
    def parse(cls, fields: Any, names: re.Pattern[str] = TOKEN_NAME) -> Handle:
        """Check what came from another process, before anything is opened.

        Parameters
        ----------
        fields : object
        names : re.Pattern, optional
            Of the tokens that may come this way.

        Raises
        ------
        HandleError
            It is not a handle.
        """
        match fields:
            case [str(token), str(segment), int(offset), int(nbytes)] if (
                type(offset) is type(nbytes) is int  # and not bool
                and names.fullmatch(token)
                and SEGMENT_NAME.fullmatch(segment)
                and 0 <= offset <= _MAX_OFFSET
                and 0 < nbytes <= _MAX_OFFSET - offset
            ):
                return cls(token, segment, offset, nbytes)
        raise HandleError(
            errno.EBADMSG,
            f"expected a handle (token, segment, offset, nbytes), found {_shown(fields)}",
        )


def _shown(fields: Any) -> str:
    try:
        return repr(fields)[:200]
    except (RecursionError, ValueError):  # nested too deeply; a number of too many digits
        return f"a {type(fields).__name__} that cannot be shown"
