"""Errors of xshm: all are ``XshmError``, and the built-in error that fits."""


class XshmError(Exception):
    """Base of every error that xshm raises on its own account."""


class DirectoryError(XshmError, OSError):
    """The directory for segments cannot be used: not ours, a link, or not to be made."""


class HandleError(XshmError, OSError):
    """A handle is malformed, or points outside its segment. Nothing was opened or kept.

    It is an ``OSError`` so that distributed treats the connection it came over as lost.
    """


class LostHandleError(HandleError):
    """The segment of a handle is gone: taken by somebody else, withdrawn, or its owner died.

    distributed treats it as a lost connection and asks for the data again.
    """
