"""The configuration: its defaults, its schema, and who wins over whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask.config
import jsonschema
import numpy as np
import pytest
import yaml

import xshm
from tests.test_process import run_python
from xshm import _core, config, process

PACKAGE = Path(xshm.__file__).parent
SCHEMA = yaml.safe_load((PACKAGE / "xshm-schema.yaml").read_text())
DEFAULTS = yaml.safe_load((PACKAGE / "xshm.yaml").read_text())


def test_the_defaults_match_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(DEFAULTS, SCHEMA)


def test_every_key_is_described_and_has_a_default() -> None:
    described = SCHEMA["properties"]["xshm"]["properties"]
    assert described.keys() == DEFAULTS["xshm"].keys()
    assert all(key["description"] for key in described.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"no-such-key": 1},
        {"directory": 5},
        {"threshold": [1]},
        {"keep": 1.5},
        {"threshold": None},
        {"waiting": -1},
        {"waiting": "many"},
        {"view-fraction": 1.5},
        {"view-fraction": -0.1},
        {"grace": []},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"xshm": wrong}, SCHEMA)


def test_the_defaults_are_in_force() -> None:
    for key, value in DEFAULTS["xshm"].items():
        if key != "directory":  # the tests have their own
            assert config.get(key) == value
    assert config.get_bytes("threshold") == 2**20
    assert config.get_seconds("grace") == 30


@pytest.mark.parametrize("value", [2**21, "2 MiB", "2MiB", str(2**21)])
def test_sizes_may_have_units(value: Any) -> None:
    with dask.config.set({"xshm.threshold": value}):
        assert config.get_bytes("threshold") == 2**21


@pytest.mark.parametrize("value", [1.5, "1.5s", "1500 ms"])
def test_times_may_have_units(value: Any) -> None:
    with dask.config.set({"xshm.grace": value}):
        assert config.get_seconds("grace") == 1.5


def test_the_environment_is_followed(directory: Path) -> None:
    (other := directory / "other").mkdir()
    environment = os.environ | {
        "DASK_XSHM__DIRECTORY": str(other),
        "DASK_XSHM__THRESHOLD": "64 KiB",
        "DASK_XSHM__VIEW_FRACTION": "0.5",
        "DASK_XSHM__WAITING": "3",
    }
    done = run_python(
        "import numpy as np, xshm; from xshm import config, process; xshm.enable();"
        "x, y = np.ones(2**13), np.ones(2**13 - 1);"
        "print(process.current().directory.path.parent, xshm.is_shared(x), xshm.is_shared(y),"
        "config.get('view-fraction'), config.get('waiting'))",
        env=environment,
    )
    assert done.stdout.split() == [str(other), "True", "False", "0.5", "3"], done.stderr


def test_a_file_of_the_user_is_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("xshm:\n  threshold: 64 KiB\n  view-fraction: 0.7\n")
    done = run_python(
        "import xshm; from xshm import config;"
        "print(config.get('threshold'), config.get('view-fraction'), config.get('waiting'))",
        env=os.environ | {"DASK_CONFIG": str(tmp_path)},
    )
    assert done.stdout == "64 KiB 0.7 64\n", done.stderr


def test_what_was_set_before_the_import_wins() -> None:
    done = run_python(
        "import dask; dask.config.set({'xshm.threshold': 12345, 'xshm.waiting': 7});"
        "import xshm; from xshm import config;"
        "print(config.get('threshold'), config.get('waiting'), config.get('grace'))"
    )
    assert done.stdout == "12345 7 30s\n", done.stderr


def test_importing_makes_nothing_in_the_directory(directory: Path) -> None:
    done = run_python("import xshm")
    assert done.returncode == 0
    assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("allocating")
def test_a_change_reaches_the_pool_when_told() -> None:
    with dask.config.set({"xshm.threshold": "4 MiB", "xshm.keep": "3 MiB"}):
        process.set_limits()
        assert not xshm.is_shared(np.ones(2**18))
        x = [np.ones(2**19) for _ in range(2)]
        assert all(map(xshm.is_shared, x))
        x.clear()
        assert _core.count()["free_bytes"] == 0
    process.set_limits()
    assert xshm.is_shared(np.ones(2**18))


@pytest.mark.parametrize("threshold", [0, 1, 100])
def test_a_tiny_threshold_is_slow_but_right(threshold: int) -> None:
    with dask.config.set({"xshm.threshold": threshold}), xshm.allocator():
        arrays = [np.full(i, i, "u1") for i in range(200)]
        assert [xshm.is_shared(x) for x in arrays] == [i >= max(threshold, 1) for i in range(200)]
        assert all((x == i).all() for i, x in enumerate(arrays))
