"""Encrypted runs: what they leave but for bytes and seconds is what others leave, and a changed message is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import mpirun
from plain_digits import PLAIN_DIGITS
from same_run import assert_same_bits, tensors
from simulate import play
from worker_simulation import CASES, ENCRYPTED, SEVEN, SMALL

from fedkd_mpi import costlog
from fedkd_mpi.codecs.message import Message, make_message
from fedkd_mpi.codecs.wire import AES_GCM, HEADER_BYTES, SERVER, Record
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication.exchange import uplink
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import RunFault
from fedkd_mpi.privacy import aes_gcm
from fedkd_mpi.run import main
from fedkd_mpi.simulation.accounting import Accounting
from fedkd_mpi.simulation.dry_run import forecast
from fedkd_mpi.simulation.encryption import Encryption, agree

pytest.importorskip("cryptography")

ON = "privacy.encryption=aes-gcm"
ADDED = 28  # bytes of nonce and tag
LAUNCHES = [("mpich", 3), ("openmpi", 9)]  # 7 clients: of 9 ranks one hosts none


def keys() -> Encryption:
    return agree(SingleProcessWorld(), np.zeros(6, np.int64))


def update(round_index: int = 2, sender: int = 5) -> Message:
    data = np.random.default_rng(round_index).integers(0, 256, 300).astype(np.uint8)
    return make_message(round_index, sender, 10, [Record(0, -1, data[:200]), Record(1, 3, data[200:])])


def assert_same_but_for_encryption(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check a log of an encrypted run (`one`) against that of the same run without."""
    copies = {
        "uplink": np.ones_like(other["uplink"]["bytes"]),
        "downlink": np.ones_like(other["downlink"]["bytes"]),
        "rounds": other["rounds"]["cohort_size"],
    }
    for table in ("layers", "clients", "rounds", "uplink", "downlink", "training"):
        for name, values in other[table].items():
            if name in ("bytes", "uplink_bytes", "downlink_bytes"):
                assert_same_bits(f"{table}/{name}", one[table][name], values + ADDED * copies[table])
            elif not name.startswith(("seconds", "mpi_rank", "catchup")):
                assert_same_bits(f"{table}/{name}", one[table][name], values)
    assert not any("encrypt" in name or "agreement" in name for table in other.values() for name in table)


def test_nothing_differs_but_bytes_and_seconds():
    settings = (*SEVEN, "compression.codec=rdsvd", "compression.error_feedback=ef")
    (encrypted, one), (plain, other) = play(PLAIN_DIGITS, *settings, ON), play(PLAIN_DIGITS, *settings)
    assert_same_but_for_encryption(one, other)
    assert_same_bits("student", encrypted.exchange.replica.numpy(), plain.exchange.replica.numpy())
    rounds, messages = one["rounds"], one["uplink"]
    assert set(messages["encryption_bytes"]) == set(one["downlink"]["encryption_bytes"]) == {ADDED}
    for leg in ("uplink", "downlink"):
        assert (rounds[f"{leg}_encryption_bytes"] == ADDED * rounds["cohort_size"]).all()
    for table in ("uplink", "downlink"):
        parts = one[table]["header_bytes"] + one[table]["layer_bytes"].sum(axis=1) + one[table]["encryption_bytes"]
        assert (one[table]["bytes"] == parts).all()
    assert (rounds["seconds_encrypt"] > 0).all()
    assert one["starts"]["key_agreement_bytes"].tolist() == [7 * 104]
    # who missed rounds fetches their broadcasts, each with its nonce and tag, or the student in one message
    missed = (rounds["catchup_bytes"] - other["rounds"]["catchup_bytes"]) / ADDED
    assert (missed == missed.astype(int)).all()
    assert missed.sum() > 0


def test_a_byte_budget_includes_nonce_and_tag():
    for key, value in (("byte_budget", 700), ("run_budget", 3000)):
        settings = ("num_clients=2", "rounds=1", "compression.codec=rdsvd", f"compression.{key}={value}")
        (_, one), (_, other) = play(PLAIN_DIGITS, *settings, ON), play(PLAIN_DIGITS, *settings)
        for log in (one, other):
            sent = log["rounds"]["uplink_bytes"].sum() + log["rounds"]["downlink_bytes"].sum()
            payloads = log["uplink"]["bytes"] - HEADER_BYTES
            assert sent <= value if key == "run_budget" else (payloads <= value).all()
        assert one["uplink"]["layer_bytes"].sum() < other["uplink"]["layer_bytes"].sum()


def test_a_sealed_message_hides_its_payload_and_shows_its_header():
    plain, encryption = update(), keys()
    sealed = encryption.seal(plain)
    assert sealed.whole.size == plain.whole.size + ADDED
    header = sealed.parsed
    assert header[2:6] == plain.parsed[2:6]
    assert (header.protection, header.payload_bytes) == (AES_GCM, plain.payload.size + ADDED)
    assert plain.payload[:8].tobytes() not in sealed.whole.tobytes()
    with pytest.raises(RunFault, match="damaged message: message has protection 1, not 0"):
        sealed.records(2)
    opened = encryption.unseal(sealed, 5, 2)
    assert opened.whole.tobytes() == plain.whole.tobytes()
    assert opened.receipt(opened.records(2)).bytes == sealed.whole.size


def test_every_flipped_bit_of_the_header_is_refused_naming_client_and_round():
    encryption = keys()
    sealed = encryption.seal(update())
    for bit in range(8 * HEADER_BYTES):
        changed = Message(sealed.whole.copy())
        changed.whole[bit // 8] ^= 1 << bit % 8
        arriving = uplink(SingleProcessWorld(), Stopwatch(), [changed], np.zeros(1, np.int64), [5])
        with pytest.raises(RunFault, match="damaged message") as caught:
            next(encryption.unseal_each(arriving, [5], 2, Stopwatch()))
        assert caught.value.client == 5
        assert caught.value.round in (2, None)  # the round loop names it where the exchange does not


@pytest.mark.parametrize("sender", [5, SERVER])
def test_another_message_of_the_sender_or_of_another_one_is_refused(sender: int):
    encryption = keys()
    early, late = (encryption.seal(update(index, sender)) for index in (1, 2))
    other = encryption.seal(update(2, 4))
    for message in (early, other):
        with pytest.raises(RunFault, match="its nonce belongs to another sender or round"):
            encryption.unseal(message, sender, 2)
    with pytest.raises(RunFault, match="message has protection 0, not 1"):
        encryption.unseal(update(2, sender), sender, 2)
    encryption.unseal(late, sender, 2)
    with pytest.raises(RuntimeError, match="has used the nonce of round 2"):
        encryption.seal(update(2, sender))


@pytest.mark.parametrize(("at", "where"), [*((byte, "round 2, client 1") for byte in (12, 36, 60)), (None, "round 2")])
def test_a_bit_flipped_on_the_wire_ends_the_run_before_anything_is_decoded(
    command: Any, monkeypatch: pytest.MonkeyPatch, at: int | None, where: str
):
    """`at`: the byte of the second message of round 2 on its way up (header, its checksum, payload); None: downlink."""
    gather, seen = SingleProcessWorld.gather, []

    def flipping(world: SingleProcessWorld, own: np.ndarray, *rest: Any, payload: bool = False, **more: Any) -> Any:
        whole = gather(world, own, *rest, payload=payload, **more)
        if payload:
            seen.append(whole.copy())
            if len(seen) == 2 and at is not None:
                second = next(i for i in range(1, whole.size) if whole[i : i + 4].tobytes() == b"FKD1")
                whole = whole.copy()
                whole[second + at] ^= 4
        return whole

    def broadcast(world: SingleProcessWorld, buffer: np.ndarray, *, payload: bool = False) -> None:
        if payload and len(seen) == 2 and at is None:
            buffer[-1] ^= 4

    monkeypatch.setattr(SingleProcessWorld, "gather", flipping)
    monkeypatch.setattr(SingleProcessWorld, "broadcast", broadcast)
    with pytest.raises(RunFault, match="damaged message") as caught:
        command("num_clients=4", "cohort_size=null", "rounds=3", ON, "--output", "x.h5")
    assert caught.value.location() == where
    assert costlog.read("x.h5")["rounds"]["round"].tolist() == [0]


def test_no_nonce_comes_twice_under_one_key_and_no_key_is_left_behind(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A run is stopped after a checkpoint, loses its later round, and is resumed: that round is sent again."""
    used: list[tuple[bytes, bytes]] = []
    seal = aes_gcm.seal

    def watched(key: bytes, number: bytes, *rest: Any) -> None:
        used.append((key, number))
        seal(key, number, *rest)

    monkeypatch.setattr(aes_gcm, "seal", watched)
    settings = ("num_clients=4", "rounds=4", "checkpoint.every=2", ON)
    log, accidents = Accounting._log, []

    def failing(self: Any, writer: Any, this: Any, *rest: Any) -> None:
        log(self, writer, this, *rest)
        if this.index == 2 and not accidents:
            accidents.append(this.index)
            raise RunFault("an accident")

    monkeypatch.setattr(Accounting, "_log", failing)
    with pytest.raises(RunFault, match="an accident"):
        command(*settings, "--output", "x.h5")
    first = len(used)
    assert main(["--resume", "x.h5", "--trust-log"]) == 0
    numbers = [number for _, number in used]
    assert len(set(numbers)) < len(numbers)  # a round was sent again
    assert len(set(used)) == len(used)
    assert not {key for key, _ in used[:first]} & {key for key, _ in used[first:]}
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(left) > 10_000
    assert not any(key in left or key.hex().encode() in left for key, _ in used)
    assert costlog.read("x.h5")["starts"]["key_agreement_bytes"].tolist() == [4 * 104] * 2


def test_a_method_that_exchanges_nothing_is_refused(command: Any):
    code, _, err = command("method=local", ON, "--output", "x.h5")
    assert code == 2
    assert err.strip().endswith("method=local exchanges nothing: set privacy.encryption=none")
    assert not Path("x.h5").exists()


def test_a_missing_library_is_told_before_anything_is_made(command: Any, monkeypatch: pytest.MonkeyPatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    code, _, err = command(ON, "--output", "x.h5")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "pip install 'fedkd-mpi[privacy]'" in err
    assert not Path("x.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mpi", "ranks"), LAUNCHES)
def test_ranks_libraries_and_balance_change_nothing(simulated: Callable[..., Path], mpi: str, ranks: int):
    one, other = simulated(mpi, ranks, *ENCRYPTED), simulated("openmpi", 1, *CASES)
    for case, plain in (("sealed", "partial"), ("sealed-apart", "apart")):
        left, right = tensors(one, case, ranks), tensors(other, plain, 1)
        assert left.keys() == right.keys()
        for name in right:
            assert_same_bits(name, left[name], right[name])
        log = costlog.read(one / f"{case}.h5")
        assert_same_but_for_encryption(log, costlog.read(other / f"{plain}.h5"))
        rounds, mpi_table = log["rounds"], log["mpi"]
        assert (mpi_table["payload_bytes_received"][:, 0] == rounds["uplink_bytes"]).all()
        assert (mpi_table["payload_bytes_sent"][:, 0] == (ranks - 1) * log["downlink"]["bytes"]).all()
        assert (mpi_table["bytes_sent"].sum(axis=1) == mpi_table["bytes_received"].sum(axis=1)).all()


def test_ranks_never_share_a_nonce(mpi_vendor: str, tmp_path: Path):
    worker = Path(__file__).parents[1] / "helpers" / "worker_nonces.py"
    done = mpirun(3, worker, tmp_path, mpi=mpi_vendor)
    assert done.returncode == 0, done.stderr
    used = [line for path in sorted(tmp_path.glob("*.txt")) for line in path.read_text().splitlines()]
    assert len(list(tmp_path.glob("*.txt"))) == 3
    assert len(used) == 2 * (6 + 1)  # two rounds: six clients and the server
    assert len(set(used)) == len(used)
    assert len({line.split()[0] for line in used}) == 7


def test_a_dry_run_counts_nonce_and_tag():
    found = []
    for chosen in ("none", "aes-gcm"):
        config = load(overrides=[PLAIN_DIGITS, *SMALL, "num_clients=2", f"privacy.encryption={chosen}"])
        found.append(json.loads(forecast(config, 1, as_json=True))["update_bytes"])
    for plain, encrypted in zip(*found, strict=True):
        assert plain["codec"] == encrypted["codec"]
        assert encrypted["first"] - plain["first"] == encrypted["last"] - plain["last"] == ADDED
