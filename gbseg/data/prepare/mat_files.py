"""MATLAB files of version 5: decompressed and verified before SciPy reads them, and never beyond a limit."""

import io
import struct
import zlib
from typing import Any

from scipy.io import loadmat

__all__ = ["read_mat"]

# types of data elements
_MATRIX, _COMPRESSED = 14, 15


def read_mat(data: bytes, limit: int, **settings: Any) -> dict[str, Any]:
    """The variables of a MATLAB file, as ``scipy.io.loadmat`` gives them.

    SciPy checks no checksums, damage can crash it, and a megabyte that decompresses to gigabytes fills the memory.

    Args:
        data: the file's content.
        limit: the most bytes that all its variables may have together.
        settings: arguments of ``scipy.io.loadmat``.

    Raises:
        ValueError: the file is no MATLAB file of version 5, is damaged, or decompresses to more than ``limit`` bytes; the
            message is a clause about it.
    """
    try:
        return loadmat(io.BytesIO(_decompressed(data, limit)), **settings)
    except Exception as error:
        # scipy has no exception for damaged files; a dozen types are possible
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error


def _decompressed(data: bytes, limit: int) -> bytes:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError(f"it begins with {data[:20]!r}" if data else "it is empty")
    position, parts, room = 128, [data[:128]], limit
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        if kind == _COMPRESSED:
            part = _inflate(data[position + 8 : position + 8 + size], room, limit)
            # SciPy would decompress one in another, without a limit
            if struct.unpack_from(f"{order}I", part)[0] != _MATRIX:
                raise ValueError(f"what is compressed at byte {position} is no variable")
        elif kind == _MATRIX:
            part = data[position : position + 8 + size]
        else:
            raise ValueError(f"there is no variable at byte {position}")
        parts.append(part)
        room -= len(part)
        position += 8 + size
    if position != len(data):
        raise ValueError(f"{len(data):,} bytes where {position:,} are announced")
    return b"".join(parts)


def _inflate(data: bytes, room: int, limit: int) -> bytes:
    decompressor = zlib.decompressobj()
    # one byte more than allowed, and never 0, which would mean no limit
    result = decompressor.decompress(data, max(room, 0) + 1)
    if len(result) > room:
        raise ValueError(f"its variables have more than {limit:,} bytes, the most that such a file can need")
    if not decompressor.eof:
        raise ValueError("a compressed variable is cut short")
    return result
