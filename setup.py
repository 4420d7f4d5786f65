"""Build the C core; everything else is in pyproject.toml.

setup.py stays for what pyproject.toml cannot say: where NumPy's headers are, that one wheel
serves every Python, and that there is nothing to build on a system other than Linux.
"""

import os
import sys

if sys.platform != "linux":
    raise SystemExit(
        f"xshm needs Linux (this is {sys.platform}): it keeps arrays in a tmpfs and relies on "
        "Linux's memory mappings and file locks."
    )

import numpy
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "xshm._core",
            sources=[
                f"xshm/_core/{name}.c"
                for name in (
                    *("spans", "segment", "written", "room", "idle"),
                    *("pool", "make_room", "arrays", "handover", "fork"),
                    *("window", "futex", "farewell"),
                    *("allocator", "mapped", "module"),
                )
            ],
            depends=[
                f"xshm/_core/{name}.h" for name in ("core", "pool", "allocator", "mapped", "python")
            ],
            include_dirs=[numpy.get_include()],
            # XSHM_CFLAGS: further flags, as for a build with sanitizers or warnings as errors.
            # -fvisibility=hidden: only Python calls in, so the files call each other directly.
            extra_compile_args=[
                *("-std=c11", "-O2", "-fvisibility=hidden"),
                *os.environ.get("XSHM_CFLAGS", "").split(),
            ],
            extra_link_args=os.environ.get("XSHM_LDFLAGS", "").split(),
            define_macros=[("_GNU_SOURCE", None)],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
