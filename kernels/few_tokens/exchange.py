"""Where blocks publish parts of sums for one another, and how long that memory lives."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .. import driver
from .division import most_exchanged

ABSENT = -(2**31)
"""What kernel.cu takes for a sum that is not published yet."""


class Exchange:
    """int32 [size] on a device, all ABSENT before and after every product. Never freed: CUDA graphs hold its address.

    Memory of the driver, not of torch: what torch allocates while vLLM loads a model is dropped when the model is
    put to sleep. torch.cuda.OutOfMemoryError if there is none.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self.size = size
        with torch.cuda.device(device):
            try:
                self.address = driver.allocate(4 * size)
            except driver.DriverError as error:
                raise torch.cuda.OutOfMemoryError(f"{4 * size} bytes for the product of few tokens: {error}") from error
            driver.fill(self.address, ABSENT, size)
            torch.cuda.synchronize()  # whatever stream reads it

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """For torch.as_tensor."""
        return {"shape": (self.size,), "typestr": "<i4", "data": (self.address, False), "version": 3}


class Exchanges:
    """Those of a device: one for each stream, shared by its products, since they follow one another.

    So graphs that were captured on one stream must not run at the same time. While a graph is captured, nothing can be
    allocated and filled for good: a stream on which nothing ran before takes the spare one. If that is taken, every
    product has memory of its own in the graph, which one more kernel fills.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.size = most_exchanged(torch.cuda.get_device_properties(device).multi_processor_count)
        self.of_streams: dict[int, Exchange] = {}
        self.spare: Exchange | None = None

    def of(self, stream: int, size: int) -> Exchange | Tensor:
        """For a product with `size` sums on this stream, the current one. Keep it until the product has started."""
        held = self.of_streams.get(stream)
        if held is None:
            held = self._new()
            if held is None:
                return torch.full((size,), ABSENT, dtype=torch.int32, device=self.device)
            self.of_streams[stream] = held
        return held

    def _new(self) -> Exchange | None:
        if torch.cuda.is_current_stream_capturing():
            spare, self.spare = self.spare, None
            return spare
        if self.spare is None:
            self.spare = Exchange(self.device, self.size)
        return Exchange(self.device, self.size)


def address(exchange: Exchange | Tensor) -> int:
    return exchange.address if isinstance(exchange, Exchange) else exchange.data_ptr()


@cache
def exchanges(device: torch.device) -> Exchanges:
    """Of this process."""
    return Exchanges(device)
