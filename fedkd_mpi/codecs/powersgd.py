"""Codec `powersgd`: a rank-r approximation by one step of power iteration from the last round's subspace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, floats, raw, read_floats, read_raw
from fedkd_mpi.codecs.tags import POWER, RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.common.remembered import Kind, Memory
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.errors import RunFault
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer


class PowerSgd(BuiltIn):
    """r (P + Q) numbers per matrix; an orthogonal projection and therefore a contraction; meant for error feedback.

    Vogels, Karimireddy and Jaggi 2019. The paper averages P and Q over all workers in two collectives. With a server,
    P and Q are sent in one message in each direction: the bytes are the same, but each sender has a subspace of its
    own. The sender's state contains Q ("q.<layer>"). The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.rank = layers, compression.rank or 4

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; tensors that are not matrices, and matrices that are not larger raw, are sent raw."""
        return [self._encode(tensor, layer, state, rng) for tensor, layer in zip(update, self.layers, strict=True)]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if an encoding, rank or length is invalid."""
        return [self._decode(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]

    def sender_memory(self) -> Memory:
        """Return what a sender remembers: Q of each matrix that it factors."""
        factored = [layer for layer in self.layers if self._pays(layer)]
        return Memory({f"q.{layer.name}": Kind((layer.matrix_shape[1], self.rank)) for layer in factored})

    def _encode(self, tensor: Tensor, layer: Layer, state: State, rng: np.random.Generator) -> Record:
        if not self._pays(layer):
            return raw(tensor)
        rows, columns = layer.matrix_shape
        largest = float(tensor.abs().max())
        if not np.isfinite(largest):
            raise RunFault("the update is not finite", layer=layer.name)
        exponent = exponent_of(largest)
        matrix = times_power_of_two(canonical(tensor).reshape(rows, columns), -exponent)
        start = state.get(f"q.{layer.name}")
        if start is None or not start.any():
            start = torch.from_numpy(rng.standard_normal((columns, self.rank), np.float32)).to(matrix.device)
        left = torch.linalg.qr(matrix @ canonical(start)).Q
        right = matrix.T @ left
        state[f"q.{layer.name}"] = right
        total = float(matrix.square().sum(dtype=torch.float64))
        lost = float((matrix - left @ right.T).square().sum(dtype=torch.float64))
        sent = times_power_of_two(right, exponent)
        if not torch.isfinite(sent).all():  # a norm can exceed float32's range although no entry does
            return raw(tensor)
        data = floats(torch.cat([left.reshape(-1), sent.reshape(-1)]))
        return Record(POWER, self.rank, data, 1 - lost / total if total else 1.0)

    def _decode(self, record: Record, layer: Layer, device: str) -> Tensor:
        if record.encoding == RAW:
            return read_raw(record, layer, device)
        if record.encoding != POWER or record.rank != self.rank or not self._pays(layer):
            raise WireError(
                f"layer {layer.name}: encoding {record.encoding} of rank {record.rank} is invalid for codec powersgd"
            )
        rows, columns = layer.matrix_shape
        numbers = read_floats(record, layer, self.rank * (rows + columns), device)
        left, right = numbers[: rows * self.rank], numbers[rows * self.rank :]
        return (left.reshape(rows, -1) @ right.reshape(columns, -1).T).reshape(layer.shape)

    def _pays(self, layer: Layer) -> bool:
        rows, columns = layer.matrix_shape
        return layer.compressible and self.rank <= min(rows, columns) and self.rank * (rows + columns) < rows * columns
