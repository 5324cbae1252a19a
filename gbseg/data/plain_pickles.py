"""Pickles of plain data: containers, numbers, text and bytes of Python, and numpy's arrays, numbers and dtypes.

A pickle names functions and what to call them with, and numpy's own classes take from it how to read memory. Here each name
that plain data needs stands for a function or class below, which takes values alone; whatever else a pickle names is refused.
"""

import pickle
import re
from abc import ABC, abstractmethod
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Literal

import numpy as np

__all__ = ["PLAIN", "Array", "Dtype", "StandIn", "load_plain", "numpy_names", "real", "text_or_bytes"]


class StandIn(ABC):
    """In place of an object whose state comes after it in a pickle; `real` puts the object there."""

    @abstractmethod
    def real(self, done: dict[int, Any]) -> Any:
        """The object. ``done``: as for the function `real`."""


class Dtype(StandIn):
    """In place of ``numpy.dtype``, of whose state nothing but the order of bytes is used: numbers, truth values, text."""

    codes = r"[biufcSU]\d+"

    def __init__(self, code: str | bytes, *_: object) -> None:
        # bytes where Python 2 has written them
        code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch(self.codes, code):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)

    def real(self, done: dict[int, Any]) -> np.dtype:
        """The dtype."""
        return self.dtype


class _AnyDtype(Dtype):
    """Also dates, records, and the dtype of arrays of objects, which are in the same pickle and so no more than plain data."""

    codes = r"[biufcSUmMV]\d+|O8?"

    def __setstate__(self, state: tuple) -> None:
        _, order, base, names, fields, size, *_ = state
        if base is not None:
            self.dtype = np.dtype((_plain(base[0]), base[1]))
        elif names is not None:
            kinds = [(_plain(fields[name][0]), fields[name][1]) for name in names]
            formats, offsets = [kind for kind, _ in kinds], [offset for _, offset in kinds]
            self.dtype = np.dtype(dict(names=list(names), formats=formats, offsets=offsets, itemsize=size))
        elif self.dtype.kind in "mM":
            unit, count = state[8][1][:2]
            self.dtype = np.dtype(f"{self.dtype.kind}8[{count}{unit.decode()}]").newbyteorder(order)
        else:
            super().__setstate__(state)


def _plain(kind: Dtype) -> np.dtype:
    """The dtype of something that is read from bytes."""
    if kind.dtype.hasobject:
        raise pickle.UnpicklingError("GLOBAL numpy.dtype('O')")
    return kind.dtype


class Array(StandIn):
    """In place of ``numpy.ndarray``."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        *_, shape, kind, fortran, data = state
        order: Literal["F", "C"] = "F" if fortran else "C"
        if kind.dtype.kind == "O":
            self.value = np.empty(len(data), object)
            for index, item in enumerate(data):
                self.value[index] = item
            self.value = self.value.reshape(shape, order=order)
        else:
            data = data.encode("latin-1") if isinstance(data, str) else data
            self.value = np.ndarray(shape, _plain(kind), bytearray(data), order=order)

    def real(self, done: dict[int, Any]) -> np.ndarray:
        """The array."""
        if self.value.dtype.kind == "O":
            done[id(self)] = self.value
            for index, item in np.ndenumerate(self.value):
                self.value[index] = real(item, done)
        return self.value


def _scalar(kind: Dtype, data: bytes | str) -> Any:
    return np.ndarray((), _plain(kind), data.encode("latin-1") if isinstance(data, str) else data)[()]


def _from_buffer(data: bytes, kind: Dtype, shape: tuple[int, ...], order: Literal["F", "C"]) -> np.ndarray:
    """In place of what protocol 5 makes arrays with."""
    return np.frombuffer(bytearray(data), _plain(kind)).reshape(shape, order=order)


def numpy_names(dtype: type[Dtype]) -> dict[str, Callable[..., Any]]:
    """What numpy's objects are made with, before and since numpy 2.

    Args:
        dtype: the class that stands for ``numpy.dtype``.
    """
    return {
        "numpy.dtype": dtype,
        "numpy.ndarray": Array,
        **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    }


def text_or_bytes(kind: type) -> Callable[..., Any]:
    """In place of ``bytes``, ``bytearray`` and ``codecs.encode``: without numbers, for which the first two take memory.

    Other codecs than Latin 1, which is how protocol 2 writes bytes, would double a text each time that they are named.
    """

    def build(value: bytes | str = b"", encoding: str = "latin-1") -> Any:
        if not isinstance(value, bytes | str) or str(encoding).replace("-", "").lower() != "latin1":
            raise ValueError(f"a {kind.__name__} is made of {str(value)[:20]!r} and {str(encoding)[:20]!r}, and not of bytes")
        return kind(value.encode("latin-1") if isinstance(value, str) else value)

    return build


_BUILTINS = (bool, int, float, complex, str, list, tuple, dict, set, frozenset, slice)
PLAIN: dict[str, Callable[..., Any]] = {
    **{f"builtins.{kind.__name__}": kind for kind in _BUILTINS},
    **{f"builtins.{kind.__name__}": text_or_bytes(kind) for kind in (bytes, bytearray)},
    "_codecs.encode": text_or_bytes(bytes),
    **{f"collections.{kind.__name__}": kind for kind in (OrderedDict, defaultdict, Counter, deque)},
    **numpy_names(_AnyDtype),
}
"""The names that plain data needs, and what they stand for here."""


class _PlainUnpickler(pickle.Unpickler):
    names: Mapping[str, Callable[..., Any]] = PLAIN

    def find_class(self, module: str, name: str) -> Any:
        place = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if place not in self.names:
            raise pickle.UnpicklingError(f"GLOBAL {place}")
        return self.names[place]


def load_plain(file: BinaryIO, more: Mapping[str, Callable[..., Any]] | None = None, **options: Any) -> Any:
    """Read a pickle of plain data.

    Args:
        file: the open file.
        more: further names that it may hold, and what they stand for.
        **options: as for ``pickle.load``.

    Raises:
        pickle.UnpicklingError: it names something else; the message is ``GLOBAL <name>``. A damaged file raises this or
            whatever its bytes happen to mean.
    """
    unpickler = _PlainUnpickler(file, **options)
    unpickler.names = PLAIN | dict(more or {})
    return real(unpickler.load(), {})


def real(value: Any, done: dict[int, Any]) -> Any:
    """The value with the objects themselves where their stand-ins are. Dictionaries and lists are changed in place.

    Args:
        value: of a pickle.
        done: what was made of which value, by its ``id``; empty at first.
    """
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = real(item, done)
    elif type(value) is list:
        value[:] = [real(item, done) for item in value]
    elif type(value) is deque:
        for index, item in enumerate(value):
            value[index] = real(item, done)
    elif type(value) is tuple:
        done[id(value)] = tuple(real(item, done) for item in value)
    elif isinstance(value, StandIn):
        done[id(value)] = value.real(done)
    elif isinstance(value, Namespace):
        real(vars(value), done)
    return done[id(value)]
