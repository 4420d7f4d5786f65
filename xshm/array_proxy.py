"""What is used like an ndarray, and passes on to one whatever NumPy asks of it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Scalar_co = TypeVar("Scalar_co", bound=np.generic, covariant=True, default=Any)
else:
    Scalar_co = typing.TypeVar("Scalar_co", bound=np.generic, covariant=True)


class ArrayProxy(NDArrayOperatorsMixin, Generic[Scalar_co]):
    """Behaves as the ndarray that it has in its slot `_array`.

    What is computed of it is an ndarray, or a scalar. What writes to an ndarray in place
    (``x[...] = 1``, ``x += 1``, ``out=x``, ``np.copyto(x, y)``) writes to its array.
    """

    __slots__ = ("_array",)

    _array: NDArray[Scalar_co]

    def get(self) -> NDArray[Scalar_co]:
        """The ndarray itself; nothing is copied."""
        return self._array

    # ---- as a container of elements ----

    def __getitem__(self, key: Any) -> Any:
        return self._array[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[key] = value

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._array)

    def __contains__(self, value: object) -> bool:
        return value in self._array

    # ---- as a number ----

    def __bool__(self) -> bool:
        return bool(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def __complex__(self) -> complex:
        return complex(self._array)

    def __index__(self) -> int:
        return self._array.__index__()  # type: ignore[misc]

    # ---- attributes: those whose types are known, and all others of an ndarray ----

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length along each axis."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Scalar_co]:
        """The type of its elements."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """The number of its elements."""
        return self._array.size

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self._array.nbytes

    @property
    def T(self) -> NDArray[Scalar_co]:  # noqa: N802  # as NumPy calls it
        """The ndarray with its axes reversed; nothing is copied."""
        return self._array.T

    def __getattr__(self, name: str) -> Any:
        # What is private or special to an ndarray need not be true of this object.
        if name.startswith("_") or not hasattr(self._array, name):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )
        return getattr(self._array, name)

    # ---- NumPy's protocols ----

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._array, dtype, copy=copy)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        return _call(getattr(ufunc, method), inputs, kwargs, out)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        others = {key: value for key, value in kwargs.items() if key != "out"}
        return _call(function, args, others, kwargs.get("out"))


def _call(function: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> Any:
    if out is None:
        return function(*_unwrapped(args), **_unwrapped(kwargs))
    plain = _unwrapped(out)
    result = function(*_unwrapped(args), **_unwrapped(kwargs), out=plain)
    # As with an ndarray, what comes back is the very object that was given.
    if isinstance(result, tuple):
        return tuple(o if r is p else r for r, p, o in zip(result, plain, out, strict=True))
    (given,) = out if isinstance(out, tuple) else (out,)
    return given if result is _unwrapped(given) else result


def _unwrapped(x: Any) -> Any:
    if isinstance(x, ArrayProxy):
        return x._array
    if type(x) is tuple:
        return tuple(map(_unwrapped, x))
    if type(x) is list:
        return [*map(_unwrapped, x)]
    if type(x) is dict:
        return {key: _unwrapped(value) for key, value in x.items()}
    return x
