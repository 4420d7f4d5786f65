"""Elsewhere than on Linux: said plainly, at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_process import run_python

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_importing_says_that_it_needs_linux(platform: str) -> None:
    done = run_python(
        f"import sys; sys.platform = {platform!r}\n"
        "try:\n"
        "    import xshm\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "print('numpy' in sys.modules)"
    )
    message, numpy_imported = done.stdout.splitlines()
    assert message.startswith(f"xshm needs Linux (this is {platform}): ")
    assert numpy_imported == "False"  # before anything else is tried


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_building_says_that_it_needs_linux(platform: str, tmp_path: Path) -> None:
    program = (
        f"import runpy, sys; sys.platform = {platform!r}; sys.argv = ['setup.py', 'build'];"
        f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"xshm needs Linux (this is {platform}): ")
    assert list(tmp_path.iterdir()) == []
