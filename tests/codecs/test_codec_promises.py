"""What every codec promises: the same bytes in any company and memory, the energy it names, and WireError on junk."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from command import Command
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matrices import energy, random, with_spectrum

from fedkd_mpi.codecs import CODECS, Codec
from fedkd_mpi.codecs.tags import TAGS
from fedkd_mpi.codecs.wire import Record, WireError, pack
from fedkd_mpi.errors import RunFault
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.simulation.server import Server

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"codec": name} for name in CODECS},
    "svd warm": {"codec": "svd", "warm_start": True},
    "svd ef21": {"codec": "svd", "error_feedback": "ef21"},
    "svd budget": {"codec": "svd", "byte_budget": 30_000},
    "rdsvd ef": {"codec": "rdsvd", "error_feedback": "ef"},
    "rdsvd model": {"codec": "rdsvd", "error_feedback": "ef", "energy_scope": "model"},
    "quantize 4": {"codec": "quantize", "bits": 4},
    "quantize 16": {"codec": "quantize", "bits": 16},
    "topk 1": {"codec": "topk", "bits": 1, "density": 0.1},
    "topk 2": {"codec": "topk", "bits": 2, "density": 0.1},
    "topk 8 ef": {"codec": "topk", "bits": 8, "density": 0.1, "error_feedback": "ef"},
    "powersgd": {"codec": "powersgd", "rank": 2},
    "eden 0.4 ef": {"codec": "eden", "bits": 0.4, "error_feedback": "ef"},
    "eden 2.5": {"codec": "eden", "bits": 2.5},
    "sz3 rough": {"codec": "sz3", "error_bound": 0.3},
    "ternary ef": {"codec": "ternary", "error_feedback": "ef"},
    "fetchsgd even": {"codec": "fetchsgd", "sketch_rows": 2},
}
SHAPES = [(32, 32), (33, 70), (7,), (130, 140), (8, 6, 3, 3), (2, 1), (1, 30), (), (16, 16)]


def update(seed: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    """Return tensors of these shapes, every third of them of falling spectrum."""
    tensors = [random(1, int(np.prod(shape)), seed=seed + 31 * i).reshape(shape) for i, shape in enumerate(shapes)]
    return [t * 0.8 ** torch.arange(t.shape[-1]) if t.dim() and i % 3 == 0 else t for i, t in enumerate(tensors)]


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.full((*tensor.shape, 3), 7.0)
    wide[..., 1] = tensor
    return wide[..., 1]


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    room = torch.zeros(tensor.numel() + 3)
    return room[3:].view(tensor.shape).copy_(tensor)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else transposed(tensor)


LAYOUTS = [torch.clone, transposed, sliced, unaligned, channels_last]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_neither_company_nor_memory_changes_a_bit(options: dict[str, Any]):
    codec = make(**options, tensors=update(0))
    updates = [update(seed) for seed in range(3)]
    senders = [(seed, layout) for seed in range(3) for layout in LAYOUTS]
    alone: list[dict[str, torch.Tensor]] = [{} for _ in updates]
    together: list[dict[str, torch.Tensor]] = [{} for _ in senders]
    for turn in range(2):
        expected = [
            pack(codec.encode(one, 0.9, alone[seed], np.random.default_rng([seed, turn]))).tobytes()
            for seed, one in enumerate(updates)
        ]
        order = np.random.default_rng(turn).permutation(len(senders))
        placed = [[senders[i][1](tensor) for tensor in updates[senders[i][0]]] for i in order]
        rngs = [np.random.default_rng([senders[i][0], turn]) for i in order]
        coded = codec.encode_each(placed, 0.9, [together[i] for i in order], rngs)
        for i, records in zip(order, coded, strict=True):
            assert pack(records).tobytes() == expected[senders[i][0]], senders[i]
        for (seed, _), state in zip(senders, together, strict=True):
            for key in alone[seed]:
                assert torch.equal(state[key], alone[seed][key])
                if state[key].dtype == torch.float32:
                    state[key] = unaligned(state[key])  # as after a resume


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_where_a_message_lies_in_memory_changes_no_bit_of_what_is_decoded(options: dict[str, Any]):
    codec = make(**options, tensors=update(0))
    records = encode(codec, *update(0), threshold=0.7)
    decoded = codec.decode(records, "cpu")
    for shift in (1, 3, 4, 12):
        room = [np.zeros(record.data.size + shift, np.uint8) for record in records]
        moved = []
        for whole, record in zip(room, records, strict=True):
            whole[shift:] = record.data
            moved.append(record._replace(data=whole[shift:]))
        total = codec.sum("cpu")
        total.add(moved, 1)
        for first, second in zip(decoded, codec.decode(moved, "cpu"), strict=True):
            assert torch.equal(first, second)
        for first, second in zip(decoded, total.take(), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_canonical_memory_is_the_tensors_own_where_it_is_so():
    tensor = random(6, 8).clone()
    assert canonical(tensor).data_ptr() == tensor.data_ptr()
    for layout in LAYOUTS[1:]:
        moved = canonical(layout(tensor))
        assert (moved.is_contiguous(), moved.data_ptr() % 64) == (True, 0)
        assert torch.equal(moved, tensor)


# -- energy ---------------------------------------------------------------------------------------------------------

PROMISES = {name: OPTIONS[name] for name in ("svd", "svd warm", "rdsvd", "rdsvd ef")}
EXTREME = st.sampled_from([(4, 20_000), (20_000, 4), (1, 900), (900, 1), (6, 1462), (2, 3), (3, 50_000)])


@settings(max_examples=60, deadline=None)
@example("rdsvd", (4, 200_000), 0.5, 0, 0.9989, None, 0)
@example("rdsvd", (200_000, 4), 1.0, 24, 0.999, None, 8)
@example("svd", (60, 124), 1.0, 0, 0.9999936249730116, None, 0)
@given(
    name=st.sampled_from([*PROMISES]),
    shape=st.one_of(EXTREME, st.tuples(st.integers(1, 150), st.integers(1, 150))),
    decay=st.sampled_from([0.2, 0.5, 0.8, 0.97, 1.0]),
    exponent=st.integers(-30, 30),
    threshold=st.one_of(
        st.sampled_from([0.3, 0.9, 0.9989, 0.999, 0.9999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-13]), st.floats(0.01, 0.999999)
    ),
    near=st.sampled_from([None, None, 0.0, 1e-9, -1e-9, 1e-6]),
    seed=st.integers(0, 999),
)
def test_what_is_decoded_keeps_the_energy_in_float64(
    name: str, shape: tuple[int, int], decay: float, exponent: int, threshold: float, near: float | None, seed: int
):
    sigma = np.r_[1.0, 0.7, 0.7, decay ** np.arange(1, 150)][: min(shape)]
    if near is not None:  # as near to what a rank holds
        held = np.cumsum(sigma**2) / np.sum(sigma**2)
        threshold = float(np.clip(held[seed % len(held)] + near, 0.01, 1 - 1e-12))
    matrix = with_spectrum(10.0**exponent * sigma, *shape, seed)
    codec, state = make(**PROMISES[name], tensors=[matrix]), {}
    if name == "svd warm":
        encode(codec, matrix + matrix.abs().mean() * random(*shape), threshold=threshold, state=state)
    (record,), (decoded,) = through(codec, matrix, threshold=threshold, state=state)
    assert energy(matrix, decoded) >= threshold
    assert record.data.size <= 4 * matrix.numel()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-30, 1e30, 3.4e38])
@pytest.mark.parametrize("kind", ["equal", "signs", "one", "falling"])
def test_numbers_at_the_ends_of_float32_stay_finite(options: dict[str, Any], scale: float, kind: str):
    scale = min(scale, 1e36) if options["codec"] == "fetchsgd" else scale  # a bucket of a sketch is a sum
    sizes = {
        "equal": torch.ones(40),
        "signs": torch.ones(40),
        "one": torch.zeros(40),
        "falling": 0.8 ** torch.arange(40),
    }
    matrix = (sizes[kind] * torch.ones(30, 1)).double()
    if kind == "signs":
        matrix *= torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (30, 40)))
    matrix[3, 5] = 1.0
    matrix = (matrix * scale).float()
    tensors = [matrix, matrix[0].clone(), matrix[3, 5].clone()]
    options = options | ({"byte_budget": 8000} if "byte_budget" in options else {})
    codec = make(**options, tensors=tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records, decoded = through(codec, *tensors, threshold=0.9)
    assert all(tensor.isfinite().all() for tensor in decoded)
    if options["codec"] in ("svd", "rdsvd") and "error_feedback" not in options and "byte_budget" not in options:
        assert all(energy(tensor, back) >= 0.9 for tensor, back in zip(tensors, decoded, strict=True))
    if options["codec"] in ("topk", "float16", "none", "submatrix"):
        for record, tensor, back in zip(records, tensors, decoded, strict=True):
            assert record.energy == pytest.approx(energy(tensor, back), abs=1e-6)


@pytest.mark.parametrize("threshold", [1e-300, 1 - 1e-16, 1.0])
@pytest.mark.parametrize("name", ["svd", "svd warm", "rdsvd", "rdsvd ef", "rdsvd model"])
def test_thresholds_at_their_ends_keep_what_they_say(name: str, threshold: float):
    shapes = [(), (5,), (1, 70), (70, 1), (40, 50), (3, 2, 1, 1), (4, 5, 3, 3), (200, 9)]
    for tensors in (update(0, shapes), [torch.full(s, -3.0) for s in shapes], [torch.zeros(s) for s in shapes]):
        codec = make(**OPTIONS[name], tensors=tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, decoded = through(codec, *tensors, threshold=threshold)
        kept = [energy(tensor, back) for tensor, back in zip(tensors, decoded, strict=True)]
        assert min(kept) >= (0 if name in ("rdsvd ef", "rdsvd model") else min(threshold, 1 - 1e-12))


# -- messages from outside ------------------------------------------------------------------------------------------

LEGS = [(name, leg) for name in OPTIONS for leg in ("up", "down") if leg == "up" or name.startswith("fetchsgd")]
FUZZED = [(12, 20), (20,), (9, 4, 3, 3), (300, 8), (5,)]
MIB = 2**20


def codec_of(name: str, leg: str, tensors: list[torch.Tensor]) -> Codec:
    codec = make(**OPTIONS[name], tensors=tensors)
    return codec.downlink() if leg == "down" else codec


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process have half a GiB more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * MIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutated(records: list[Record], rng: np.random.Generator) -> list[Record]:
    records = list(records)
    for _ in range(rng.integers(1, 4)):
        i, j = rng.integers(len(records), size=2)
        record, kind = records[i], rng.integers(8)
        data = record.data.copy()
        if kind == 0 and data.size:
            data[rng.integers(min(data.size, rng.choice([8, 64, data.size])))] = rng.choice(
                [0, 1, 127, 128, 255, rng.integers(256)]
            )
        elif kind == 1:
            data = data[: rng.integers(data.size + 1)]
        elif kind == 2:
            data = np.append(data, rng.integers(0, 256, rng.integers(1, 30), np.uint8))
        elif kind == 3:
            data = records[j].data
        elif kind == 7 and data.size >= 4:  # a signalling NaN, in place of the first or of another number
            at = rng.choice([0, rng.integers(data.size - 3)])
            data[at : at + 4] = (1, 0, 128, 127)
        rank = int(rng.choice([-(2**31), -2, -1, 0, 1, 3, 9, 12, 2**31 - 1])) if kind == 4 else record.rank
        known = [*TAGS, 255]
        records[i] = Record(int(rng.choice(known)) if kind == 5 else record.encoding, rank, data)
        if kind == 6:
            records[i], records[j] = records[j], records[i]
    return records


@settings(max_examples=200, deadline=None)
@given(leg=st.sampled_from(LEGS), seed=st.integers(0, 2**32 - 1), sparse=st.booleans())
def test_a_damaged_record_is_refused_by_its_layers_name_or_fits(leg: tuple[str, str], seed: int, sparse: bool):
    tensors = [
        tensor * (torch.arange(tensor.shape[0]) % 9 == 0).view(-1, *[1] * (tensor.dim() - 1)) if sparse else tensor
        for tensor in update(1, FUZZED)
    ]
    codec = codec_of(*leg, tensors)
    records = encode(codec, *tensors, threshold=0.8)
    shapes = [tensor.shape for tensor in codec.decode(records, "cpu")]
    rng = np.random.default_rng(seed)
    with little_memory(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            wrong = mutated(records, rng)
            for sums in (False, True):
                assert read_or_refused(codec, wrong, sums) in (shapes, "layer")


def added(codec: Codec, records: list[Record]) -> list[torch.Tensor]:
    total = codec.sum("cpu")
    total.add(records, 1)
    return total.take()


def read_or_refused(codec: Codec, records: list[Record], sums: bool) -> list[torch.Size] | str:
    """Return the shapes that were read, or whether a layer is named where they are refused."""
    try:
        return [tensor.shape for tensor in (added(codec, records) if sums else codec.decode(records, "cpu"))]
    except WireError as error:
        return "layer" if "layer" in str(error) else str(error)


@pytest.mark.parametrize("leg", LEGS, ids=" ".join)
def test_a_record_much_longer_than_its_layer_is_refused_before_it_is_unpacked(leg: tuple[str, str]):
    tensors = update(1, FUZZED)
    codec = codec_of(*leg, tensors)
    records = encode(codec, *tensors, threshold=0.8)
    for i, record in enumerate(records):
        data = np.zeros(record.data.size + 64 * MIB, np.uint8)
        data[: record.data.size] = record.data
        with little_memory(), pytest.raises(WireError, match="layer"):
            codec.decode([*records[:i], record._replace(data=data), *records[i + 1 :]], "cpu")


def test_a_servers_message_that_does_not_fit_ends_the_run_as_a_fault(monkeypatch: pytest.MonkeyPatch, command: Command):
    right = Server.encode

    def wrong(server: Server, *given: Any) -> list[Record]:
        first, *rest = right(server, *given)
        return [first._replace(rank=2**31 - 1), *rest]

    monkeypatch.setattr(Server, "encode", wrong)
    with pytest.raises(RunFault, match=r"downlink message: layer .*: rank 2147483647") as caught:
        command("compression.codec=none", "rounds=1")
    assert caught.value.round == 0


@pytest.mark.parametrize("leg", LEGS, ids=" ".join)
def test_a_rank_where_none_belongs_is_refused(leg: tuple[str, str]):
    tensors = update(1, FUZZED)
    codec = codec_of(*leg, tensors)
    records = encode(codec, *tensors, threshold=0.8)
    for i, record in enumerate(records):
        for rank in (0, 1, 2**31 - 1) if record.rank == -1 else (-1, 2**31 - 1):
            with pytest.raises(WireError, match="layer"):
                codec.decode([*records[:i], record._replace(rank=rank), *records[i + 1 :]], "cpu")
