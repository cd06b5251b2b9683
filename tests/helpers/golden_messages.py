"""Writes the golden messages anew: what every codec sends of a small update, kept so that a change of the wire is seen.

    python tests/helpers/golden_messages.py NAME ...        or: all

Only where a change of the wire is meant; CHANGELOG.md then says so. tests/golden/update.npz holds two updates of one
sender, one after the other. A case is the message of the second: its bytes with the header, what they decode to, and
its configuration. Error feedback changes it by what the first has left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd_mpi.codecs import CODECS, Codec, factory, wire
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = {
    "conv.weight": (4, 3, 3, 3),
    "conv.bias": (4,),
    "embedding.weight": (20, 6),
    "hidden.weight": (24, 20),
    "hidden.bias": (24,),
    "flat.weight": (18, 12),
    "tiny.weight": (6, 8),
    "one.weight": (3, 3),
    "scale": (),
}
ROUND, SENDER, SAMPLES, THRESHOLD = 1, 3, 57, 0.93
OWN = {"topk": {"density": 0.1}, "powersgd": {"rank": 2}, "fetchsgd": {"density": 0.05}}
FEEDBACK = ("none", "ef", "ef21")
# Lossless, so that error feedback adds nothing; a sketch, which it does not go with.
WITHOUT_FEEDBACK = ("none", "submatrix", "fetchsgd")
EXACT = (
    "none",
    "float16",
    "quantize",
    "topk",
    "fetchsgd",
    "submatrix",
    "eden",
    "sign",
    "ternary",
)  # neither way multiplies matrices


def cases() -> dict[str, dict[str, Any]]:
    """Return the configuration of every case by its name: threshold, leg and section `compression`."""
    found: dict[str, dict[str, Any]] = {}
    for codec in CODECS:
        for feedback in FEEDBACK[:1] if codec in WITHOUT_FEEDBACK else FEEDBACK:
            name = codec if feedback == "none" else f"{codec}-{feedback}"
            found[name] = _case(codec=codec, error_feedback=feedback, **OWN.get(codec, {}))
    found["fetchsgd-down"] = found["fetchsgd"] | {"leg": "down"}
    found["rdsvd-low"] = _case(0.6, codec="rdsvd")
    found["rdsvd-high"] = _case(0.9999, codec="rdsvd")
    found["rdsvd-higher"] = _case(0.99999, codec="rdsvd")
    found["quantize-4"] = _case(codec="quantize", bits=4)
    found["quantize-16"] = _case(codec="quantize", bits=16)
    for bits in (1, 2, 8):
        found[f"topk-{bits}"] = _case(codec="topk", density=0.1, bits=bits)
    for bits in (0.5, 2.5, 4):
        found[f"eden-{bits:g}"] = _case(codec="eden", bits=bits)
    return found


def _case(threshold: float = THRESHOLD, **compression: Any) -> dict[str, Any]:
    return {"threshold": threshold, "leg": "up", "compression": compression}


def layers() -> list[Layer]:
    """Return the layers of the update."""
    return [Layer(name, shape, len(shape) >= 2) for name, shape in SHAPES.items()]


def updates() -> list[list[torch.Tensor]]:
    """Return the two updates that update.npz holds."""
    with np.load(GOLDEN / "update.npz") as file:
        return [[torch.from_numpy(file[f"{turn}/{name}"]) for name in SHAPES] for turn in range(2)]


def build(case: dict[str, Any]) -> Codec:
    """Return the codec of a case."""
    return factory.build(CompressionConfig(**case["compression"]), layers())


def encode(case: dict[str, Any]) -> list[wire.Record]:
    """Return the records of the second message of a case's sender: a client, or the server where the leg is down."""
    codec, down, state = build(case), case["leg"] == "down", {}
    sender = codec.downlink() if down else codec
    received: dict[str, torch.Tensor] = {}
    records: list[wire.Record] = []
    for turn, update in enumerate(updates()):
        if down:
            sketch = codec.decode(codec.encode(update, case["threshold"], {}, np.random.default_rng(turn)), "cpu")
            update = codec.receive(sketch, received, 1.0)
        records = sender.encode(update, case["threshold"], state, np.random.default_rng(turn))
    return records


def message(case: dict[str, Any]) -> np.ndarray:
    """Return the whole message: header and payload, uint8."""
    records = encode(case)
    payload = wire.pack(records)
    sender = wire.SERVER if case["leg"] == "down" else SENDER
    return np.concatenate([wire.pack_header(wire.UPDATE, ROUND, sender, len(records), SAMPLES, payload), payload])


def read(data: np.ndarray) -> tuple[wire.Header, list[wire.Record]]:
    """Return the header and the records of a message."""
    header = wire.unpack_header(data[: wire.HEADER_BYTES])
    return header, wire.unpack(header, data[wire.HEADER_BYTES :], len(SHAPES))


def decode(case: dict[str, Any], records: list[wire.Record]) -> np.ndarray:
    """Return all numbers that the records decode to, one tensor after another, float32."""
    codec = build(case).downlink() if case["leg"] == "down" else build(case)
    return torch.cat([tensor.reshape(-1) for tensor in codec.decode(records, "cpu")]).numpy()


def load(name: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return a golden case: configuration, message, decoded numbers."""
    with np.load(GOLDEN / "messages" / f"{name}.npz") as file:
        return json.loads(str(file["case"])), file["message"], file["decoded"]


def new_updates() -> dict[str, np.ndarray]:
    """Return two updates of every kind of layer: falling and flat spectra, rank 1, zero rows and columns, 1-D, 0-D."""
    rng = np.random.default_rng(2022)
    made = {}
    for turn in range(2):
        for name, shape in SHAPES.items():
            values = np.asarray(rng.normal(size=shape))
            if name != "flat.weight" and len(shape) == 2:
                left, sizes, right = np.linalg.svd(values, full_matrices=False)
                values = (left * sizes * (0.0 if name == "one.weight" else 0.6) ** np.arange(len(sizes))) @ right
            if name == "embedding.weight":
                values[rng.permutation(len(values))[:12]] = 0
                values[:, 2] = 0
            made[f"{turn}/{name}"] = (values * 0.01).astype(np.float32)
    return made


def main() -> None:
    """Write the cases that are named."""
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*known, "all"], metavar="NAME", help=", ".join(known))
    asked = parser.parse_args().names
    if not (GOLDEN / "update.npz").exists():
        np.savez(GOLDEN / "update.npz", **new_updates())
    for name in known if "all" in asked else asked:
        case = known[name]
        data = message(case)
        decoded = decode(case, read(data)[1])
        np.savez(GOLDEN / "messages" / f"{name}.npz", case=np.array(json.dumps(case)), message=data, decoded=decoded)
        print(f"{name}: {data.size} bytes, records {[record.encoding for record in read(data)[1]]}")


if __name__ == "__main__":
    main()
