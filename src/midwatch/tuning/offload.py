"""Checkpoints in pinned host memory: copied out behind the forward pass, fetched ahead of the backward pass.

A checkpoint of a layer (its input) is needed once, much later. On a stream of its own the copy costs the step nothing
as long as a layer computes longer than its input travels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Parcel:
    """One tensor on its way to the host and back."""

    def __init__(self, shelf: Shelf, device_copy: Tensor, before: Parcel | None) -> None:
        self._shelf, self._before = shelf, before
        self._device = device_copy.device
        self._host = shelf.take(device_copy)
        self._back: Tensor | None = None
        self._done = torch.cuda.Event()
        stream = shelf.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._host.copy_(device_copy, non_blocking=True)
        device_copy.record_stream(stream)

    def _fetch(self) -> None:
        """Begin the way back, if it has not begun."""
        if self._back is not None:
            return
        self._back = torch.empty(self._host.shape, dtype=self._host.dtype, device=self._device)
        stream = self._shelf.stream
        stream.wait_stream(torch.cuda.current_stream())  # the memory may have been in use until now
        with torch.cuda.stream(stream):
            self._back.copy_(self._host, non_blocking=True)
            self._done.record()
        self._back.record_stream(stream)

    def open(self) -> Tensor:
        """The tensor on the device again. Also begins to fetch the one that was put away before it."""
        self._fetch()
        back = self._back
        assert back is not None
        torch.cuda.current_stream().wait_event(self._done)
        if self._before is not None:
            self._before._fetch()
        self._shelf.give(self._host)
        self._back = self._before = None
        return back


class Shelf:
    """Pinned buffers, used again from step to step."""

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()
        self._free: list[Tensor] = []
        self._last: Parcel | None = None

    def put(self, tensor: Tensor) -> Parcel:
        """Begin to copy a tensor to the host; the caller may drop it."""
        self._last = Parcel(self, tensor, self._last)
        return self._last

    def begin(self) -> None:
        """A new forward pass: what was put away before it is not fetched for it."""
        self._last = None

    def take(self, like: Tensor) -> Tensor:
        """A pinned buffer of that shape."""
        for at, buffer in enumerate(self._free):
            if buffer.shape == like.shape and buffer.dtype == like.dtype:
                return self._free.pop(at)
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def give(self, buffer: Tensor) -> None:
        """Back among the free ones. Its next writer is ordered behind its last reader by the one stream."""
        if len(self._free) < 256:
            self._free.append(buffer)
