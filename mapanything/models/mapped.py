"""Weights that lie in mapped files: their checksums, and the memory behind them.

Notable:
- torch writes a checksum (CRC-32) for every part of a `.pth` and never compares one: a flipped bit would be another weight,
  and nobody would know. safetensors and the files of torch before 1.6 have none.
- Compared is what is used: the pickle and the weights, not an optimizer's state, which is as large as two networks.
  It takes half a second a GB, and memory holds one weight at a time.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mapanything.errors import InputError

Checksums = set[tuple[int, int]]  # (size in bytes, CRC-32) of every part; CRC-32 is 0 where torch was told to write none


def read_checksums(path: Path) -> Checksums:
    """The table of contents of a `.pth`.

    Raises:
        InputError: it can't be read, or the pickle, which says what is where, is not what was saved.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.filename.endswith("/data.pkl") and entry.CRC:
                    archive.read(entry)
    except MemoryError:
        raise
    except Exception as error:  # what damage makes zipfile raise can be anything
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: is damaged or not complete; fetch or copy it again ({words})") from error
    return {(entry.file_size, entry.CRC) for entry in entries}


def check_weights(path: Path, weights: Mapping[str, Tensor], checksums: Checksums) -> None:
    """That each weight's bytes are those of a part of the file.

    Raises:
        InputError: they are not.
    """
    seen = set()
    for name, weight in weights.items():
        if weight.layout is not torch.strided or weight.device.type != "cpu":
            continue
        storage = weight.untyped_storage()
        size, address = storage.nbytes(), storage.data_ptr()
        if address in seen or not size or (size, 0) in checksums:
            continue
        seen.add(address)
        content = torch.empty(0, dtype=torch.uint8).set_(storage)
        if (size, zlib.crc32(content.numpy())) not in checksums:
            raise InputError(
                f"{path}: is damaged ({name} is not what was saved: its checksum is wrong); fetch or copy it again"
            )
        drop_pages(content)


_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def drop_pages(tensor: Tensor) -> None:
    """Pages of a private mapping that nobody has written to leave memory; a later access reads the file again."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise is not None and last > first and tensor.is_contiguous():
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
