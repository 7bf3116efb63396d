"""Weights out of mapped files into memory, one by one: compared with the file's checksums on the way.

Notable:
- torch writes a checksum (CRC-32) for every part of a `.pth` and never compares one: a flipped bit would be another weight,
  and nobody would know. safetensors and the files of torch before 1.6 have none.
- Compared is what is used: the pickle (read.py) and the weights, not an optimizer's state, which is as large as two networks.
  It takes half a second a GB.
- A copy, although the mapping itself could serve as weights (it is private, pages that are written to become one's own): a
  file that somebody writes over, or whose server goes away, would change the weights of a running model or kill it, and the
  first step of training copies every page anyway. The pages behind a weight that was copied leave memory, so that it never
  holds both.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import zlib

import torch
from torch import Tensor

from mapanything.errors import InputError
from mapanything.models.weights.read import Checkpoint


class Copying:
    """Copies weights of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._compared: set[int] = set()  # several weights may lie in one part of the file

    def copy(self, name: str, target: Tensor) -> None:
        """Copies the weight of a canonical name.

        Raises:
            InputError: its bytes are not those that were saved.
        """
        tensor = self._checkpoint.tensors[name]
        self._compare(name, tensor)
        target.copy_(tensor)
        if self._checkpoint.mapped:
            _drop_pages(tensor)

    def _compare(self, name: str, tensor: Tensor) -> None:
        checksums = self._checkpoint.checksums
        if checksums is None or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        size, address = storage.nbytes(), storage.data_ptr()
        if address in self._compared or not size or (size, 0) in checksums:  # 0 where torch was told to write none
            return
        self._compared.add(address)
        content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (size, zlib.crc32(content.data)) not in checksums:
            raise InputError(
                f"{self._checkpoint.source}: is damaged ({name} is not what was saved: its checksum is wrong); fetch or copy "
                "it again"
            )


_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def _drop_pages(tensor: Tensor) -> None:
    """Pages of a private mapping that nobody has written to leave memory; a later access reads the file again."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise is not None and last > first and tensor.is_contiguous():
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
