"""Untrusted pickles: only plain containers, numbers, strings and arrays are built.

A pickle is a program. Here every global it names is looked up in a short list; any other is refused by name,
before it runs. Knows nothing of what the files mean.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from gemel_ray.errors import Mistake

_PLAIN = frozenset("biufUS")  # kinds of numpy's numbers and strings: object arrays contain pickles
_ARRAY = object()  # stands for numpy.ndarray, which must not be called: it allocates any size


def read_pickle(path: Path) -> Any:
    """The content of `path`. Raises ValueError, naming the file and what is wrong or refused."""
    try:
        with path.open("rb") as file:
            return _Plain(_Bounded(file)).load()
    except OSError as fault:
        raise Mistake(f"cannot read {path}: {fault.strerror}") from fault
    except Refused as reason:
        raise Mistake(f"{path} is refused: {reason}") from reason
    except Exception as fault:  # a damaged pickle may raise anything
        raise Mistake(f"{path} is not a complete pickle: {fault or type(fault).__name__}") from fault


def read_state(path: Path) -> dict[str, Any]:
    """A torch-saved state_dict, tensors on the CPU. Raises ValueError as `read_pickle` does."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as fault:
        raise Mistake(f"cannot read {path}: {fault.strerror or fault}") from fault
    except Exception as fault:  # torch has no error class for this
        found = str(fault).partition("GLOBAL ")[2].split(" ")[0]
        reason = f"it wants {found}, but a checkpoint holds tensors only" if found else "it is damaged"
        raise Mistake(f"{path} is refused: {reason}") from fault
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise Mistake(f"{path} is not a checkpoint: it holds no state_dict of tensors")
    return state


class _Bounded:
    """A file of which no more is read than it has."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, number: int) -> bytes:
        if number > self.size:
            raise Refused(
                f"not a complete pickle: it claims to hold {number:,} bytes in a file of {self.size:,}"
            )
        return self.file.read(number)


class Refused(Exception):
    """The pickle names something that is not allowed."""


class _Plain(pickle._Unpickler):  # type: ignore[name-defined]
    """The unpickler written in Python: the C one allocates a table as long as the largest memo index, and as
    many bytes as the pickle claims."""

    append: Any  # the two that `load` sets
    read: Any

    def _bytearray(self) -> None:
        """Read the bytes before memory is allocated, not after."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.BYTEARRAY8[0]: _bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # its name from numpy 2 on
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise Refused(
                f"it wants {module}.{name}, which is not a plain container, number or array"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to something outside itself")


def _dtype(*arguments: Any) -> np.dtype[Any]:
    made = np.dtype(*arguments)
    if made.kind not in _PLAIN:
        raise Refused(f"it holds an array of {made}, not of numbers or text")
    return made


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    """An array that its state will fill: numpy checks that shape and bytes agree."""
    if kind is not _ARRAY or tuple(shape) != (0,):
        raise Refused("it builds an array in no usual way")
    return np.empty((0,), np.int8)


def _from_buffer(buffer: Any, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def _latin(text: str, encoding: str) -> bytes:
    """Bytes as old protocols spell them."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"it wants the codec {encoding}")
    return text.encode("latin-1")


def _tensor(data: bytes) -> Any:
    """The storage inside a pickled tensor, itself a pickle: read by torch's weights reader."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _rebuilt(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    import torch

    whole = torch.empty(0, dtype=storage.dtype)
    return whole.set_(storage._untyped_storage, offset, tuple(size), tuple(stride)).numpy()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin,
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch.storage", "_load_from_bytes"): _tensor,
}
