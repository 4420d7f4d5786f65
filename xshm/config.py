"""Configuration: the ``xshm:`` section of dask's.

The keys and their defaults are in ``xshm.yaml``, described in ``xshm-schema.yaml``. As with
every key of dask's configuration, a file in ``~/.config/dask``, an environment variable
(``DASK_XSHM__DIRECTORY``) or ``dask.config.set`` changes them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

_DEFAULTS_FILE = Path(__file__).with_name("xshm.yaml")


def install_defaults() -> None:
    """Make the section known to dask, below whatever the user has set."""
    dask.config.ensure_file(source=str(_DEFAULTS_FILE))
    dask.config.update_defaults(yaml.safe_load(_DEFAULTS_FILE.read_text()))


def get(key: str) -> Any:
    """The value of ``xshm.<key>`` as it stands."""
    return dask.config.get(f"xshm.{key}")


def get_bytes(key: str) -> int:
    """The value of ``xshm.<key>``, a size such as ``1 MiB``, in bytes."""
    return _nbytes(get(key))


@functools.lru_cache
def _nbytes(size: str | float) -> int:
    # Asked for with each array that is pickled.
    return int(parse_bytes(size))


def get_seconds(key: str) -> float:
    """The value of ``xshm.<key>``, a time such as ``30s``, in seconds."""
    return float(parse_timedelta(get(key)))
