"""Boxes of arrays that the processes of a node share."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.communication.shared_memory import FOLDER
from fedkd_mpi.communication.world import SingleProcessWorld, World
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.scheduling import array_store as stores
from fedkd_mpi.scheduling.array_store import ArrayStore, DiskArrayStore, SharedArrayStore

BOXES = 3
KINDS = st.sampled_from(["<f4", "<i8", "|u1"])
SHAPES = st.lists(st.integers(0, 40), max_size=2).map(tuple)
CONTENTS = st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(KINDS, SHAPES), max_size=4)
ACTIONS = st.lists(st.tuples(st.integers(0, BOXES - 1), st.sampled_from(["fill", "update", "change"]), CONTENTS))
BOTH = pytest.mark.parametrize("kind", [SharedArrayStore, DiskArrayStore])


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_holds(store: ArrayStore, slot: int, expected: dict[str, np.ndarray]) -> None:
    found = store.read(slot)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].ctypes.data % 64 == 0


@BOTH
@given(actions=ACTIONS)
def test_a_box_holds_what_was_put_into_it_last(kind: type[ArrayStore], actions: list) -> None:
    store = kind(SingleProcessWorld(), BOXES, 0)
    expected: list[dict[str, np.ndarray]] = [{} for _ in range(BOXES)]
    rng = np.random.default_rng(0)
    for slot, action, contents in actions:
        arrays = {name: rng.integers(0, 99, shape).astype(kind) for name, (kind, shape) in contents.items()}
        if action == "change":  # what is read, and only some of it replaced, as training does
            arrays = store.read(slot) | arrays
            for array in arrays.values():
                array += 1
        copies = {name: array.copy() for name, array in arrays.items()}
        (store.put if action == "fill" else store.update)(slot, arrays)
        expected[slot] = copies
        for each, held in enumerate(expected):
            assert_holds(store, each, held)


def test_only_another_layout_is_a_new_version() -> None:
    store, first = SharedArrayStore(SingleProcessWorld(), 1, 0), np.arange(6.0)
    assert store.versions([0]) == [0]
    store.update(0, {"a": first})
    view = store.read(0)["a"]
    view[2] = 7.0
    store.update(0, {"a": view})
    store.update(0, {"a": first + 1})
    assert store.versions([0]) == [1]
    assert view.tolist() == (first + 1).tolist()
    store.update(0, {"a": first, "b": first})
    store.put(0, {"a": first, "b": first})
    assert store.versions([0]) == [3]


@BOTH
def test_a_box_that_grows_and_shrinks_does_not_fill_the_memory(kind: type[ArrayStore]) -> None:
    store = kind(SingleProcessWorld(), 1, 0)
    for size in [1000, 1200] * 500:
        store.put(0, {"a": np.zeros(size)})
    assert os.fstat(store._file).st_size < 2 * stores.LEAST


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [(SharedArrayStore, "enlarge /dev/shm, or .*balance=false"), (DiskArrayStore, "TMPDIR.*clients_in_memory=null")],
)
def test_a_node_without_room_ends_the_run_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[ArrayStore], remedy: str
) -> None:
    store = kind(SingleProcessWorld(), 1, 0)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunFault, match=f"No space left on device.*{remedy}"):
        store.put(0, {"a": np.zeros(10)})


def test_a_disk_that_is_full_in_spite_of_its_promise_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskArrayStore(SingleProcessWorld(), 1, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunFault, match=r"No space left on device.*TMPDIR"):
        store.put(0, {"a": np.zeros(10)})


def test_where_memory_has_no_room_the_file_lies_in_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = []
    create = ArrayStore._create
    monkeypatch.setattr(
        ArrayStore, "_create", lambda self, folder, size: made.append(folder) or create(self, folder, size)
    )
    SharedArrayStore(SingleProcessWorld(), 1, 2**60).put(0, {"a": np.zeros(10)})
    SharedArrayStore(SingleProcessWorld(), 1, 0)
    assert made == [tmp_path, FOLDER if FOLDER.is_dir() else tmp_path]
    assert not list(tmp_path.iterdir())


def test_what_lies_on_disk_takes_no_memory_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB in boxes, one of 1 MB at hand."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, before = DiskArrayStore(SingleProcessWorld(), 64, 0), resident()
    for slot in range(64):
        store.prefetch([slot])
        store.put(slot, {"a": np.full(2**17, float(slot))})
    assert [store.read(slot)["a"][-1] for slot in range(64)] == list(range(64))
    assert resident() - before < 16 * 2**20
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
@BOTH
def test_processes_see_each_others_boxes_and_take_different_numbers(world: World, kind: type[ArrayStore]) -> None:
    store, size = kind(world, world.world_size, 0), world.world_size
    numbers = np.array([store.next_index() for _ in range(50)])
    everyone = world.allgather(numbers).view(np.int64)
    assert sorted(everyone.ravel().tolist()) == list(range(50 * size))
    before, after = (world.mpi_rank - 1) % size, (world.mpi_rank + 1) % size
    for turn in range(1, 5):
        store.put(world.mpi_rank, {"a": np.full(10**turn, world.mpi_rank), "turn": np.array(turn)})
        world.barrier()
        filled = turn if kind is SharedArrayStore else 2 * turn - 1  # on disk also by those who change what they read
        assert store.versions(list(range(size))) == [filled] * size
        arrays = store.read(after)
        assert arrays["turn"] == turn
        np.testing.assert_array_equal(arrays["a"], np.full(10**turn, after))
        world.barrier()
        arrays["a"][0] = -1  # in place, in another one's box, where it lies in memory
        store.update(after, arrays)
        world.barrier()
        assert store.read(world.mpi_rank)["a"][0] == -1
        assert store.read(before)["a"][1] == before
        world.barrier()
    assert not list(FOLDER.glob("fedkd-clients-*")) + list(Path(tempfile.gettempdir()).glob("fedkd-clients-*"))


@pytest.mark.mpi
def test_processes_that_do_not_share_a_folder_are_refused_everywhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.mpi_rank == world.world_size - 1 and world.world_size > 1:
        monkeypatch.setattr(os, "open", lambda path, *_: (_ for _ in ()).throw(FileNotFoundError(2, "No such file")))
    if world.world_size > 1:
        with pytest.raises(UserError, match=r"not all processes on .*No such file.*balance=false"):
            SharedArrayStore(world, 1, 0)
    monkeypatch.undo()
    world.barrier()
    assert not list(FOLDER.glob("fedkd-clients-*"))
