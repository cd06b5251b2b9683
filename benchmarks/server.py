"""server: one aggregation of 32 clients' updates against rebuilding all of them, np.mean and np.linalg.svd; its memory.

    python -m benchmarks server [--threshold 0.95]         (after python -m benchmarks.record_updates)

The updates are recorded ones of the first block of the BERT-like student and of the ResNet, encoded with codec svd. Six
of each are recorded (two clients, three rounds). Those of the 32 clients have permuted columns, each in another order:
they have the same ranks and bytes, but their mean has a higher rank than a real mean, which is slower for both methods.
Time is CPU time on one thread, measured alternately. Memory is the increase of rank 0 of two processes at its peak,
while the other process sends the messages of 4 or 32 clients.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.record_updates import FOLDER
from benchmarks.recorded import SMALLEST, cpu_seconds
from fedkd_mpi.codecs import factory
from fedkd_mpi.codecs.message import Message, make_message
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication import exchange
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.training import ServerConfig as Settings
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.simulation.server import Server

CLIENTS, FEW = 32, 4
STUDENTS = {"text_bert": "blocks.0.", "cifar_resnet": ""}  # student -> prefix of the layers


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the speed-up over the paper's procedure and the ratio of peak memories, one row per student."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks server")
    parser.add_argument("--threshold", type=float, default=0.95)
    threshold = parser.parse_args(arguments).threshold
    torch.set_num_threads(1)
    threadpool_limits(1)
    rows, totals = [], np.zeros(2)
    for student in STUDENTS:
        server = _server(recorded(student))
        sent = [message(server, student, client, threshold) for client in range(CLIENTS)]
        layers = len(server.student.layers)
        seconds = cpu_seconds(
            partial(_ours, server, sent, threshold),
            partial(_rebuilt, server, sent, threshold),
            repetitions=1,
        )
        totals += seconds
        memory = {clients: _peak_of_two_processes(student, clients, threshold) for clients in (FEW, CLIENTS)}
        ranks = [record.rank for m in sent for record in m.records(layers)]
        rows.append(
            {
                "student": student,
                "MB": sum(layer.numel for layer in server.student.layers) * 4e-6,
                "mean K (-1: raw)": float(np.mean(ranks)),
                "message MB": np.mean([m.payload.size for m in sent]) / 1e6,
                "seconds": seconds[0],
                "numpy seconds": seconds[1],
                "speed-up": seconds[1] / seconds[0],
                **{f"peak MB, {clients} clients": peak / 1e6 for clients, peak in memory.items()},
            }
        )
    ratios = [row[f"peak MB, {CLIENTS} clients"] / row[f"peak MB, {FEW} clients"] for row in rows]
    claims = {
        "speedup_32_clients": min(row["speed-up"] for row in rows),
        "peak_memory_32_over_4_clients": max(ratios),
    }
    return claims, rows


def recorded(student: str) -> list[dict[str, Tensor]]:
    """Return the recorded updates of a student, by layer: its matrices of at least 64 x 64."""
    with np.load(FOLDER / f"{student}.npz") as file:
        names = [name for name in file.files if name.split("/")[2].startswith(STUDENTS[student])]
        names = [name for name in names if _is_large(file[name].shape)]
        groups = sorted({name.rsplit("/", 1)[0] for name in names})
        return [
            {name.split("/")[2]: torch.from_numpy(file[name]) for name in names if name.startswith(group + "/")}
            for group in groups
        ]


def _is_large(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and min(shape[0], int(np.prod(shape[1:]))) >= SMALLEST


def _server(updates: list[dict[str, Tensor]]) -> Server:
    module = nn.Module()
    for name, tensor in updates[0].items():
        module.register_parameter(name.replace(".", "_"), nn.Parameter(torch.zeros(tensor.shape)))
    student = FlatModel(module, "cpu")
    codec = factory.build(CompressionConfig(codec="svd"), student.layers)
    return Server(Settings(), student, codec, "cpu", 0, CLIENTS)


def message(server: Server, student: str, client: int, threshold: float) -> Message:
    """Return the uplink message of a client."""
    updates = recorded(student)
    rng = generator(0, "columns", client)
    update = []
    for tensor in updates[client % len(updates)].values():
        matrix = tensor.reshape(tensor.shape[0], -1)
        update.append(matrix[:, torch.from_numpy(rng.permutation(matrix.shape[1]))].reshape(tensor.shape))
    records = server.codec.encode(update, threshold, {}, rng)
    return make_message(0, client, 1, records)


def _ours(server: Server, sent: list[Message], threshold: float) -> None:
    layers = len(server.student.layers)
    update = server.aggregate(0, ((m.parsed, m.records(layers)) for m in sent))
    assert update is not None  # every message has an update
    server.encode(0, update, threshold)


def _rebuilt(server: Server, sent: list[Message], threshold: float) -> None:
    """Rebuild all dense updates, and compute the truncated SVD of their mean."""
    layers = server.student.layers
    records = [m.records(len(layers)) for m in sent]
    for index, layer in enumerate(layers):
        rows, columns = layer.matrix_shape
        dense = []
        for record in (own[index] for own in records):
            numbers = np.frombuffer(record.data.tobytes(), "<f4")
            if record.rank >= 0:
                left = numbers[: rows * record.rank].reshape(rows, record.rank)
                numbers = left @ numbers[rows * record.rank :].reshape(record.rank, columns)
            dense.append(numbers.reshape(rows, columns))
        left, sigma, right = np.linalg.svd(np.mean(dense, axis=0), full_matrices=False)
        energies = np.cumsum(sigma**2)
        rank = int((energies <= threshold * energies[-1]).sum()) + 1
        _ = left[:, :rank] * sigma[:rank], right[:rank]


def _peak_of_two_processes(student: str, clients: int, threshold: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "peak.json"
        task = [sys.executable, "-m", "benchmarks.server", student, str(clients), str(threshold), str(result)]
        subprocess.run(["mpirun", "-n", "2", *task], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(result.read_text(encoding="utf-8"))


def measure(student: str, clients: int, threshold: float, result: Path) -> None:
    """Send the messages of `clients` clients to rank 0, which writes the peak bytes of its aggregation."""
    from fedkd_mpi.communication.launch import open_world

    world = open_world()
    torch.set_num_threads(1)
    server = _server(recorded(student))
    layers = len(server.student.layers)
    own = [] if world.is_root else [message(server, student, client, threshold) for client in range(clients)]
    world.barrier()
    ctypes.CDLL(None).malloc_trim(0)  # free memory must not be reused below
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    held = _memory("VmRSS")
    arriving = exchange.uplink(world, Stopwatch(), own, np.ones(clients, np.int64))
    if world.is_root:
        update = server.aggregate(0, ((m.parsed, m.records(layers)) for m in arriving))
        assert update is not None  # every message has an update
        server.encode(0, update, threshold)
    else:
        list(arriving)
    if world.is_root:
        result.write_text(json.dumps(_memory("VmHWM") - held), encoding="utf-8")
    world.close()


def _memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    name, number, limit, target = sys.argv[1:]
    measure(name, int(number), float(limit), Path(target))
