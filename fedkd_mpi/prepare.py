"""From a configuration to everything a run needs in this process: data, clients, networks, codec."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi import capacity, codecs, cohort, datasets, methods, module_tensors, pairs, tasks
from fedkd_mpi import partition as partitions
from fedkd_mpi.batches import work
from fedkd_mpi.client import Client
from fedkd_mpi.config import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.network import Network
from fedkd_mpi.rest import Rest
from fedkd_mpi.sameness import require_same_data
from fedkd_mpi.server import Server
from fedkd_mpi.streams import generator, torch_scope
from fedkd_mpi.tasks import Task
from fedkd_mpi.trial import require_fit
from fedkd_mpi.wire import RECORD_BYTES
from fedkd_mpi.workbench import EVALUATION_BATCH, Arrays, Workbench, initial_student, under_key
from fedkd_mpi.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.crew import Crew
    from fedkd_mpi.exchange import Message


@dataclass(frozen=True)
class Data:
    """The data set as every process sees it (one copy a node) and who holds which of its training samples."""

    train: Arrays
    test: Arrays
    meta: dict[str, Any]
    clients: list[tuple[np.ndarray, np.ndarray]]  # (train, test) indices into `train`, by client id


@dataclass
class Simulation:
    """One process's part of a run.

    `student` is the module all work is done on, `replica` the flat global student, the same bits everywhere after each
    round, but for `answers` of the server that this process has not yet applied to it; student and replica are None
    where nothing is exchanged. `workbench` is None on a process without clients, `server` but on rank 0.
    """

    config: Config
    world: World
    data: Data
    task: Task
    device: str
    families: np.ndarray  # of every client: those that are trained at once
    hosts: np.ndarray  # the mpi rank of every client
    clients: dict[int, Client]
    rest: Rest
    workbench: Workbench | None
    student: Network | None
    replica: Tensor | None
    codec: codecs.Codec | None
    server: Server | None
    teacher_numbers: list[int]  # what a dense exchange of each client's teacher would send, for comparison
    downlink_state: dict[str, Tensor] = field(default_factory=dict)  # what the codec's receiver keeps, like the replica
    answers: list[Message] = field(default_factory=list)
    crew: Crew | None = None  # with whom this process trains the clients of its node, None = alone those it hosts

    @property
    def test_size(self) -> int:
        """Number of samples in the global test set."""
        return len(next(iter(self.data.test.values())))

    @property
    def scores_student(self) -> bool:
        """Whether the global student has a score: it exists, and BatchNorm's statistics are not kept local."""
        return self.student is not None and self.student.local_buffers is None

    def needs_replica(self, round_index: int, evaluated: bool) -> bool:
        """Whether this process must have its replica up to date at the end of a round; all do after the last."""
        scores = evaluated and self.scores_student and len(self.test_chunks(self.world.mpi_rank)) > 0
        works = self.crew is None or self.crew.works or self.server is not None
        return works or scores or round_index == self.config.rounds - 1

    def evaluates(self, round_index: int) -> bool:
        """Whether a round ends with an evaluation: every so many, and the last one."""
        return round_index == self.config.rounds - 1 or (round_index + 1) % self.config.evaluate.every == 0

    def scores_teachers(self, round_index: int) -> bool:
        """Whether every teacher is scored on the global test set in this round."""
        return self.config.evaluate.global_teachers and round_index == self.config.rounds - 1

    def test_chunks(self, mpi_rank: int) -> range:
        """Return the first samples of the chunks of the global test set that a process scores."""
        chunks = -(-self.test_size // EVALUATION_BATCH)
        share = cohort.shares(chunks, self.world.world_size)[mpi_rank]
        return range(share.start * EVALUATION_BATCH, share.stop * EVALUATION_BATCH, EVALUATION_BATCH)


def load_data(config: Config, world: World, read: Callable[..., datasets.Dataset] | None = None) -> Data:
    """Read the data on one process a node, share it in memory, and divide it among the clients.

    `read` takes the place of datasets.load. Collective. Raises the same UserError on every process.
    """
    pairs.check(config)
    arrays = meta = error = None
    if world.is_node_leader:
        try:
            dataset = (read or datasets.load)(config.data.name, data_root(config), config.seed, config.data.options())
            parts = (("train", dataset.train | dataset.tables), ("test", dataset.test))
            arrays = {f"{part}/{name}": array for part, group in parts for name, array in group.items()}
            meta = dataset.meta
            pairs.require(config.task, config.data.name, {"train": dataset.train, "test": dataset.test}, meta)
            if not meta.get("stand_in") and (":" in config.data.name or ":" in config.task):
                tasks.check_data(config.task, config.data.name, parts[0][1], dataset.test, meta)
        except UserError as problem:
            error = str(problem)
    if first := world.agree(error):
        raise UserError(first)
    shared, meta = world.share(arrays, meta)
    require_same_data(world, shared, meta)
    train, test = (
        {name.removeprefix(part): array for name, array in shared.items() if name.startswith(part)}
        for part in ("train/", "test/")
    )
    task = tasks.find(config.task)(meta, train)
    return Data(train, test, meta, divide(config, task.labels(train), train.get("group"), train.get("document")))


def data_root(config: Config) -> Path | None:
    """Return the folder of the data sets: data.root, else $FEDKD_DATA, else None."""
    if config.data.root:
        return config.data.root
    return Path(os.environ["FEDKD_DATA"]) if os.environ.get("FEDKD_DATA") else None


def divide(
    config: Config, labels: np.ndarray, groups: np.ndarray | None, documents: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return every client's own (train, test) indices; a pure function of configuration and labels."""
    settings = config.partition
    shares = partitions.partition(
        settings.kind,
        labels,
        config.num_clients,
        generator(config.seed, "partition"),
        alpha=settings.alpha,
        classes_per_client=settings.classes_per_client,
        groups=groups,
        min_samples=settings.min_samples,
    )
    return [
        partitions.split(indices, labels, settings.test_fraction, generator(config.seed, "split", client), documents)
        for client, indices in enumerate(shares)
    ]


def prepare(config: Config, world: World, data: Data) -> Simulation:
    """Build this process's networks, codec and clients; raises UserError where configuration and data do not fit."""
    device = choose_device(config.device, world.local_rank)
    set_threads(config, world.node_size)
    task = tasks.find(config.task)(data.meta, data.train)
    if config.data.augment and getattr(task, "augment", None) is None:
        raise UserError(f"data.augment: task={config.task} knows no augmentation; set data.augment=false")
    capacity.require_networks(config, task)
    method = methods.build(config, task)
    families, hosts = place(config, data, world.world_size)
    own = np.flatnonzero(hosts == world.mpi_rank).tolist()
    clients = {client: Client(client, *data.clients[client]) for client in own}
    student = codec = server = workbench = None
    if method.exchanges:
        student = initial_student(config, method, device)
        if not student.parameter_layers:
            raise UserError(f"{method.role}: none of its parameters is trained, so nothing would be exchanged")
        codec = codecs.build(
            config.compression,
            student.parameter_layers,
            config.rounds,
            config.cohort,
            reserved=sum(RECORD_BYTES + 4 * layer.numel for layer in student.exchanged_buffers),
        )
        if world.is_root:
            server = Server(config.server, student, codec, device, config.seed, config.num_clients)
    if clients:
        workbench = Workbench(config, task, method, student, data.train, device)
        tried = set()  # a network that cannot be built or trained is refused here
        for client in clients.values():
            if len(client.train_indices) == 1 or config.architecture(client.id) not in tried:
                require_fit(workbench, client)
            tried.add(config.architecture(client.id))
        if config.stack > 1:
            for client in clients.values():
                workbench.stack(client)
    return Simulation(
        config=config,
        world=world,
        data=data,
        task=task,
        device=device,
        families=families,
        hosts=hosts,
        clients=clients,
        workbench=workbench,
        rest=Rest(config.clients_in_memory, device, len(clients)),
        student=student,
        replica=student.state.clone() if student else None,
        codec=codec,
        server=server,
        teacher_numbers=count_numbers(config, task),
    )


def place(config: Config, data: Data, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each client's family and the mpi rank that hosts it, so that all processes have about as much to do."""
    samples = [work(len(train), config.local) for train, _ in data.clients]
    size = config.stack * config.num_clients // config.cohort if config.stack > 1 else 1  # a stack in a usual cohort
    families = cohort.families(samples, config.by_client(range(len(config.architectures))), size)
    _, first, family = np.unique(families, return_index=True, return_inverse=True)
    in_order = first.argsort().argsort()[family]  # families by their first clients
    of_family = np.bincount(in_order, samples).astype(np.int64)
    return families, cohort.placement(of_family.tolist(), world_size)[in_order]


def count_numbers(config: Config, task: Task) -> list[int]:
    """Return how many numbers an exchange of each client's teacher would send: trainable ones and float buffers."""
    import torch

    counts = []
    for architecture in range(len(config.architectures)):
        with torch_scope(config.seed, "teacher shapes"), torch.device("meta"):
            teacher = methods.make_teacher(config, task, architecture)
        with under_key(f"teachers.{architecture}" if config.teachers else "teacher"):
            counts.append(module_tensors.count_numbers(teacher))
    return config.by_client(counts)


def choose_device(device: str, local_rank: int) -> str:
    """Return the torch device of this process; auto = GPU (local rank modulo the node's GPUs), or the CPU."""
    if device == "cpu":
        return device
    import torch

    if not torch.cuda.is_available():
        if device == "auto":
            return "cpu"
        raise UserError(f"device={device}, but torch sees no GPU on this node; use device=cpu or device=auto")
    # Bit-identical repetition on a GPU needs this before the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    count = torch.cuda.device_count()
    index = int(device.split(":")[1]) if ":" in device else local_rank % count
    if index >= count:
        raise UserError(f"device={device}, but this node has {count} GPU(s)")
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def set_threads(config: Config, node_size: int) -> int:
    """Set and return torch's threads: threads_per_rank, or for auto the node's cores over its processes."""
    import torch

    if config.threads_per_rank == "auto":
        threads = max(1, len(os.sched_getaffinity(0)) // node_size)
    else:
        threads = config.threads_per_rank
        capacity.require_threads(threads)
    torch.set_num_threads(threads)
    return threads
