"""
A disk image that takes writes in place of another one, which stays as it is.

What is made is an empty qcow2 image with a backing file, so that QEMU's program
for images is not needed.

Source: ``docs/interop/qcow2.txt`` in QEMU's source.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from postpanic.errors import NotReadyError

__all__ = ["make_overlay", "measure_image"]

_CLUSTER_BITS = 16
_CLUSTER_BYTES = 1 << _CLUSTER_BITS
_MAGIC = b"QFI\xfb"
_HEADER_BYTES = 112
_REFCOUNT_ORDER = 4
_BACKING_FORMAT = 0xE2792ACA
_MOST_NAME_BYTES = 1023
_MOST_BYTES = 1 << 46
_SECTOR_BYTES = 512


def measure_image(path: Path) -> int:
    """
    Return the size of a raw image, or of a device.

    Raises
    ------
    NotReadyError
        If it cannot be read, or is an image of another format.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
            size = stream.seek(0, 2)
    except OSError as exc:
        raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    if head == _MAGIC:
        raise NotReadyError("is a qcow2 image, must be a raw one", where=str(path), hint="qemu-img convert -O raw")
    if not size or size % _SECTOR_BYTES:
        raise NotReadyError(f"has {size} bytes, must be a disk of whole sectors", where=str(path))
    return size


def make_overlay(backing: Path, path: Path) -> Path:
    """
    Make an image that is all that *backing* is until it is written to.

    Parameters
    ----------
    backing : Path
        A raw image, or a device.

    Raises
    ------
    NotReadyError
        If *backing* cannot be read, is too large, or its name too long.
    """
    size = measure_image(backing)
    name = json.dumps({"driver": "raw", "file": {"driver": _driver_of(backing), "filename": str(backing.resolve())}})
    encoded = f"json:{name}".encode()
    if size > _MOST_BYTES or len(encoded) > _MOST_NAME_BYTES:
        raise NotReadyError("no copy-on-write image can be made of it", where=str(backing))
    # Header, table of reference counts, one block of them, then the table of the first level: all in clusters.
    entries = -(-size // (_CLUSTER_BYTES * (_CLUSTER_BYTES // 8)))
    l1_clusters = -(-entries * 8 // _CLUSTER_BYTES)
    form = b"raw"
    extension = struct.pack(">II", _BACKING_FORMAT, len(form)) + form.ljust(8, b"\0") + struct.pack(">II", 0, 0)
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(_MAGIC, 3, _HEADER_BYTES + len(extension), len(encoded), _CLUSTER_BITS, size, 0, entries),
        *(3 * _CLUSTER_BYTES, _CLUSTER_BYTES, 1, 0, 0),
    )
    header += struct.pack(">QQQII8s", 0, 0, 0, _REFCOUNT_ORDER, _HEADER_BYTES, b"")
    with path.open("wb") as stream:
        stream.write(header + extension + encoded)
        stream.seek(_CLUSTER_BYTES)
        stream.write(struct.pack(">Q", 2 * _CLUSTER_BYTES))
        stream.seek(2 * _CLUSTER_BYTES)
        stream.write(struct.pack(">H", 1) * (3 + l1_clusters))
        stream.truncate((3 + l1_clusters) * _CLUSTER_BYTES)
    return path


def _driver_of(path: Path) -> str:
    return "host_device" if path.is_block_device() else "file"
