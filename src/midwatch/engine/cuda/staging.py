"""A step's integers on their way to the device: written into pinned memory, sent in one copy, never waited for.

A pinned buffer may be written again only after its copy is done; three buffers in turn keep the host ahead of the
device. The device side is one buffer: kernels of a step are ordered after its copy and before the next one's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from midwatch.engine.batch import Int32

DEPTH = 3
ALIGN = 4  # integers: 16 bytes, so that kernels are compiled once for all offsets


class Staging:
    """Room for `capacity` int32 numbers a step, growing where a step needs more."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.device = device
        self.turn = 0
        self._allocate(capacity)

    def host(self) -> Int32:
        """The buffer to write the next step into; waits only if its copy of three steps ago is still under way."""
        self.turn = (self.turn + 1) % DEPTH
        if self.device.type == "cuda":
            self.copied[self.turn].synchronize()
        numbers: Int32 = self.buffers[self.turn].numpy()
        return numbers

    def send(self, count: int) -> torch.Tensor:
        """Copy the first `count` numbers of the buffer that `host` gave; int32 [count] on the device."""
        out = self.numbers[:count]
        out.copy_(self.buffers[self.turn][:count], non_blocking=True)
        if self.device.type == "cuda":
            self.copied[self.turn].record()
        return out

    def pack(self, arrays: Sequence[Int32]) -> list[torch.Tensor]:
        """Send several arrays in one copy; their device views, shaped as they are."""
        offsets = np.cumsum([0] + [aligned(array.size) for array in arrays]).tolist()
        if offsets[-1] > self.numbers.numel():
            self._allocate(2 * offsets[-1])
        host = self.host()
        for offset, array in zip(offsets, arrays, strict=False):
            host[offset : offset + array.size] = array.ravel()
        sent = self.send(offsets[-1])
        return [
            sent[offset : offset + array.size].view(array.shape) for offset, array in zip(offsets, arrays, strict=False)
        ]

    def _allocate(self, capacity: int) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)  # the old buffers may still be copied from
            self.copied = [torch.cuda.Event() for _ in range(DEPTH)]  # type: ignore[no-untyped-call]
        self.buffers = [torch.zeros(capacity, dtype=torch.int32, pin_memory=on_gpu) for _ in range(DEPTH)]
        self.numbers = torch.zeros(capacity, dtype=torch.int32, device=self.device)


def aligned(count: int) -> int:
    """The next multiple of `ALIGN`."""
    return -(-count // ALIGN) * ALIGN
