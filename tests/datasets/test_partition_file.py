"""A partition in a file is the same partition, to the bit and on any number of ranks; what is odd in one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_files
import pytest
from command import TINY, Command, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from mpirun import LIBRARIES, find, mpirun
from plain_digits import PLAIN_DIGITS

from fedkd_mpi import costlog
from fedkd_mpi.config.load import load
from fedkd_mpi.datasets.partition_file import Samples, flat, read, unflat, write
from fedkd_mpi.errors import UserError

LABELS = np.arange(20) % 4
SAMPLES = Samples(LABELS)


def divided(sizes: list[int], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return clients with that many samples for training and half as many for the test, drawn from 20."""
    order, clients, at = np.random.default_rng(seed).permutation(20), [], 0
    for size in sizes:
        train, test = order[at : at + size], order[at + size : at + size + size // 2]
        clients.append((np.sort(train), np.sort(test)))
        at += size + size // 2
    return clients


def same(one: list[tuple[np.ndarray, np.ndarray]], other: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    pairs = zip((part for own in one for part in own), (part for own in other for part in own), strict=True)
    return all(a.dtype == b.dtype == np.int64 and a.tobytes() == b.tobytes() for a, b in pairs)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 99), named=st.booleans())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, named: bool):
    folder = tmp_path_factory.mktemp("partition")
    clients = divided(sizes, seed)
    ids = np.array([f"ü {19 - row}/x".encode() for row in range(20)]) if named else None
    samples = Samples(LABELS, ids)
    for name in ("p.json", "p.npz"):
        write(folder / name, clients, samples, overwrite=False)
        assert same(read(str(folder / name), len(sizes), samples), clients)
    assert same(unflat(**flat(clients)), clients)
    tree = json.loads((folder / "p.json").read_text())
    if named:
        assert tree["clients"][0]["train"] == [f"ü {19 - row}/x" for row in clients[0][0]]


def client(tree: dict[str, Any], number: int = 0) -> dict[str, list]:
    return tree["clients"][number]


ODD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "clients": (lambda t: t["clients"].pop(), "among 1 clients: set num_clients=1"),
    "samples": (lambda t: t.update(samples=21), "made for 21 training samples, but the data have 20"),
    "labels": (lambda t: t.update(labels="0" * 64), "made for other data"),
    "range": (lambda t: client(t)["train"].append(20), r"client 0, train: sample 20, but the .* are 0\.\.19"),
    "negative": (lambda t: client(t, 1)["test"].append(-1), "client 1, test: sample -1"),
    "huge": (lambda t: client(t)["train"].append(10**30), "client 0, train: begins with"),
    "fraction": (lambda t: client(t)["train"].append(1.5), "has float and int, expected one of them"),
    "truth": (lambda t: client(t).update(train=[True]), "begins with True, expected whole numbers"),
    "twice": (lambda t: client(t)["train"].append(client(t)["train"][0]), "client 0, train: sample .* is there twice"),
    "shared": (
        lambda t: client(t, 1)["train"].append(client(t)["train"][0]),
        "sample .* is for training of clients 0 and 1",
    ),
    "leak": (
        lambda t: client(t, 1)["test"].append(client(t)["train"][0]),
        "is for the test of client 1 and for training of client 0",
    ),
    "own leak": (lambda t: client(t)["test"].append(client(t)["train"][0]), "test of client 0 and for training of"),
    "nothing": (lambda t: client(t).update(train=[]), "client 0 has no training sample"),
    "no test": (lambda t: client(t).pop("test"), "client 0 is not"),
    "ids": (lambda t: client(t).update(train=["a"]), r"names samples by id, which these data have none of"),
    "key": (lambda t: t.update(owner=3), "unknown key 'owner'"),
    "owners": (lambda t: t.update(whole_owners=True), "says whole_owners, but the data have no owners"),
    "stated": (lambda t: t.update(samples="20"), "samples is 20, expected a int|expected a"),
    "list": (lambda t: t.update(clients=3), 'has no list "clients"'),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_named(tmp_path: Path, case: str):
    change, message = ODD[case]
    path = tmp_path / "p.json"
    write(path, divided([4, 3]), SAMPLES, overwrite=False)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message) as caught:
        read(str(path), 2, SAMPLES)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_documents_and_owners_stay_whole_where_they_must(tmp_path: Path):
    path, clients = tmp_path / "p.npz", [(np.arange(8), np.arange(8, 10)), (np.arange(10, 16), np.arange(16, 20))]
    halves = np.repeat([0, 1], 10)
    write(path, clients, Samples(LABELS, owners=halves), overwrite=False)
    assert same(read(str(path), 2, Samples(LABELS, owners=halves)), clients)
    with pytest.raises(UserError, match="samples of owner 0 are with several clients"):
        read(str(path), 2, Samples(LABELS, owners=np.roll(halves, 3)))
    with pytest.raises(UserError, match="made for other data"):
        read(str(path), 2, Samples(LABELS[::-1], owners=halves))
    with pytest.raises(UserError, match="client 0 trains on one part of document 0 and is tested on another"):
        read(str(path), 2, Samples(LABELS, documents=halves, owners=halves))
    with pytest.raises(UserError, match="it exists; choose another name, or pass --overwrite"):
        write(path, clients, SAMPLES, overwrite=False)
    tests = [(np.arange(4), np.arange(16, 20)), (np.arange(4, 8), np.arange(16, 20))]  # of both clients the same
    write(path, tests, SAMPLES, overwrite=True)
    assert same(read(str(path), 2, SAMPLES), tests)


RUN = ["rounds=2", "num_clients=5", "local.epochs=1", "teacher.hidden=[16]", "student.hidden=[8]", PLAIN_DIGITS]
FROM = ["partition.kind=file"]


def on_three_ranks(*arguments: str) -> None:
    installed = [mpi for mpi in LIBRARIES if find(mpi)]
    if not installed:
        pytest.skip("no MPI is installed")
    done = mpirun(3, "-m", "fedkd_mpi.run", *arguments, mpi=installed[0])
    assert done.returncode == 0, done.stderr


def assert_same_logs(one: dict[str, Any], other: dict[str, Any]) -> None:
    for table in ("clients", "rounds", "training", "uplink", "downlink"):
        for name, values in one[table].items():
            if not name.startswith("seconds") and name != "mpi_rank":
                assert values.tobytes() == other[table][name].tobytes(), (table, name)


def test_a_run_by_its_own_partition_has_the_same_bits_on_one_and_on_three_ranks(command: Command, tmp_path: Path):
    code, _, err = command(*RUN, "--save-partition", "p.json", "--output", "a.h5")
    assert (code, err) == (0, "")
    assert command(*RUN, "--save-partition", "p.npz", "--dry-run")[::2] == (0, "")
    assert command(*RUN, *FROM, "partition.path=p.json", "--output", "b.h5", "--save-partition", "q.json")[0] == 0
    on_three_ranks(*RUN, *FROM, "partition.path=p.npz", "device=cpu", "--output", "c.h5")
    assert Path("q.json").read_bytes() == Path("p.json").read_bytes()
    logs = [costlog.read(tmp_path / f"{name}.h5") for name in "abc"]
    assert_same_logs(logs[0], logs[1])
    assert_same_logs(logs[0], logs[2])
    tree = json.loads(Path("p.json").read_text())
    assert logs[0]["clients"]["test_samples"].tolist() == [len(own["test"]) for own in tree["clients"]]


def test_refusals_of_a_run(command: Command):
    assert_refused(command(*RUN, *FROM), "partition.kind=file needs partition.path")
    assert_refused(command(*RUN, "partition.path=p.json"), "partition.path belongs to partition.kind=file")
    assert_refused(command(*RUN, *FROM, "partition.path=none.json"), "partition.path=none.json: no such file")
    assert_refused(command(*RUN, "--save-partition", "p.txt", "--output", "a.h5"), "must end in .json or .npz")
    assert_refused(command(*RUN, "--save-partition", "no/p.json", "--output", "a.h5"), "there is no folder no")
    Path("p.json").write_text('{"clients": [{"train": [1, 2], "test": []}]}')
    assert_refused(command(*RUN, *FROM, "partition.path=p.json", "--dry-run"), "among 1 clients: set num_clients=1")
    pooled = [*RUN, *FROM, "partition.path=p.json", "num_clients=1", "data.pooled=0"]
    assert_refused(command(*pooled, "--dry-run"), "data.pooled=0 scores on the clients' own test samples, but p.json")
    assert not list(Path().glob("*.h5"))


def test_a_client_without_test_samples_takes_part_and_has_no_score(command: Command):
    Path("p.json").write_text('{"clients": [{"train": [1, 2, 3], "test": []}, {"train": [4, 5, 6], "test": [7, 8]}]}')
    keys = ["num_clients=2", "rounds=1", *FROM, "partition.path=p.json", "--output", "a.h5"]
    assert command(PLAIN_DIGITS, *keys)[::2] == (0, "")
    log = costlog.read(Path("a.h5"))
    assert np.isnan(log["training"]["teacher_accuracy"]).tolist() == [True, False]
    assert log["rounds"]["teacher_accuracy"][0] == log["training"]["teacher_accuracy"][1]


def test_another_kind_of_partition_lets_go_of_what_a_preset_says_of_its_own():
    natural = load(overrides=["partition.kind=natural"])
    assert (natural.partition.kind, natural.partition.alpha) == ("natural", None)
    assert natural.partition.min_samples == load().partition.min_samples
    assert load(overrides=["partition.kind=dirichlet"]) == load()
    with pytest.raises(UserError, match=r"partition.alpha belongs to partition.kind=dirichlet"):
        load(overrides=["partition.alpha=0.3", "partition.kind=natural"])


def test_owners_of_a_table_are_clients(command: Command):
    own_files.table(Path("t.csv"))
    mlp = "{name: mlp, hidden: [8], learning_rate: 0.1}"
    keys = ["task=tabular", "data={name: csv, path: t.csv, label: kind, client: site, features: [a]}"]
    keys += [f"teacher={mlp}", f"student={mlp}", "partition.kind=natural", "num_clients=3", "rounds=1"]
    code, _, err = command(*keys, "--save-partition", "p.json", "--output", "a.h5")
    assert (code, err) == (0, "")
    assert command(*keys, "--dry-run")[::2] == (0, "")
    on_three_ranks(*TINY, *keys, "--output", "c.h5")
    assert_same_logs(*(costlog.read(Path(name)) for name in ("a.h5", "c.h5")))
    assert_refused(command(*keys, "data.root=."), "data.root: data.name=csv reads data.path alone")
    assert '"whole_owners": true' in Path("p.json").read_text()
    assert_refused(command(*keys, "num_clients=4", "--output", "b.h5"), "the data have 3 groups; set num_clients to 3")


def test_pictures_are_named_by_their_paths(command: Command):
    pytest.importorskip("PIL")
    own_files.pictures(Path("pics"), each=10)
    keys = ["data={name: folder, path: pics, size: 6}", "partition.min_samples=2", "rounds=1", "num_clients=2"]
    assert command(*keys, "--dry-run", "--save-partition", "p.json")[::2] == (0, "")
    clients = json.loads(Path("p.json").read_text())["clients"]
    assert all((Path("pics") / name).is_file() for own in clients for part in own.values() for name in part)
    assert command(*keys, "--output", "a.h5")[::2] == (0, "")
    assert command(*keys, *FROM, "partition.path=p.json", "--output", "b.h5")[::2] == (0, "")
    assert_same_logs(costlog.read(Path("a.h5")), costlog.read(Path("b.h5")))
    clients[0]["train"][0] = "zebra/none.png"
    Path("p.json").write_text(json.dumps({"clients": clients}))
    assert_refused(command(*keys, *FROM, "partition.path=p.json"), "id 'zebra/none.png' is none of the training")
