"""Builds from a configuration everything that a run needs in this process: data, clients, networks, codec."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import datasets, methods, tasks
from fedkd_mpi.client.batches import work
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.trainer import initial_student, under_key
from fedkd_mpi.client.trial import require_fit
from fedkd_mpi.codecs import factory
from fedkd_mpi.codecs.wire import RECORD_BYTES
from fedkd_mpi.common.console import say
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.communication.world import World
from fedkd_mpi.config import pairs
from fedkd_mpi.config.schema import Config
from fedkd_mpi.datasets import opened, partition_file, pooling
from fedkd_mpi.datasets import partition as partitions
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import Method
from fedkd_mpi.models import module_tensors
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.privacy.aes_gcm import OVERHEAD
from fedkd_mpi.scheduling import cohort
from fedkd_mpi.scheduling.plan import Plan
from fedkd_mpi.scheduling.schedule import OwnClients
from fedkd_mpi.scheduling.state_cache import ClientStateCache
from fedkd_mpi.simulation import capacity
from fedkd_mpi.simulation.differential_privacy import protection_of, require_public_stop
from fedkd_mpi.simulation.early_stop import watched
from fedkd_mpi.simulation.sameness import require_same_data
from fedkd_mpi.simulation.server import Server
from fedkd_mpi.simulation.state import Data, Exchange, Simulation
from fedkd_mpi.tasks import Task


def load_data(config: Config, world: World, read: Callable[..., datasets.Dataset] | None = None) -> Data:
    """Read the data on one process per node, share them in memory, and divide them among the clients. Collective.

    `read` replaces datasets.load. Raises the same UserError on every process.
    """
    pairs.check(config)
    arrays = meta = error = None
    files: list[Path] = []
    if world.is_node_leader:
        try:
            with opened.recorded() as files:
                arrays, meta = read_data(config, read or datasets.load)
            if config.data.name == "hf":  # which maps its files into memory
                files = opened.below(datasets.expanded(config.data.options()["path"]))
        except UserError as problem:
            error = str(problem)
    if first := world.first_message(error):
        raise UserError(first)
    shared, meta = world.share(arrays, meta)
    require_same_data(world, shared, meta)
    train, test = (
        {name.removeprefix(part): array for name, array in shared.items() if name.startswith(part)}
        for part in ("train/", "test/")
    )
    if config.partition.kind == "file":
        clients = partition_file.unflat(shared["clients/indices"], shared["clients/sizes"])
    else:
        task = tasks.build(config.task.name, meta, train, options=config.task.options())
        clients = divide(config, task.labels(train), train.get("group"), train.get("document"))
    if config.data.pooled != 0:
        return Data(train, test, np.arange(len(next(iter(test.values())))), meta, clients, files)
    return Data(train, train, np.sort(np.concatenate([own for _, own in clients])), meta, clients, files)


def read_data(config: Config, read: Callable[..., datasets.Dataset]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of the data set, with those of a partition file, and its meta; raises UserError."""
    dataset = read(config.data.name, data_root(config), config.seed, config.data.options())
    meta = dataset.meta
    pairs.require(config.task.name, config.data.name, {"train": dataset.train, "test": dataset.test}, meta)
    own = config.data.name in datasets.OWN or ":" in config.data.name or ":" in config.task.name
    if own and not meta.get("stand_in"):
        tasks.check_data(config.task.name, config.data.name, dataset.train | dataset.tables, dataset.test, meta)
    dataset = arranged(config, dataset)
    parts = (("train", dataset.train | dataset.tables), ("test", dataset.test))
    arrays = {f"{part}/{name}": array for part, group in parts for name, array in group.items()}
    meta = dataset.meta
    if config.partition.kind == "file":
        clients = read_partition(config, parts[0][1], meta)
        if config.data.pooled == 0 and not any(len(test) for _, test in clients):
            raise UserError(
                f"data.pooled=0 scores on the clients' own test samples, but {config.partition.path} names none: add"
                ' "test" there, or set data.pooled to the share of a global test set'
            )
        arrays |= {f"clients/{name}": array for name, array in partition_file.flat(clients).items()}
    return arrays, meta


def arranged(config: Config, dataset: datasets.Dataset) -> datasets.Dataset:
    """Return the data as data.pooled and data.pixels ask for; raises UserError."""
    if config.data.pixels == "half":
        dataset = pooling.centred(dataset)
    if config.data.pooled is None:
        return dataset
    pooled = pooling.pool(dataset)
    if config.data.pooled == 0:
        return pooled
    arrays = pooled.train | pooled.tables
    labels = tasks.build(config.task.name, pooled.meta, arrays, options=config.task.options()).labels(arrays)
    return pooling.hold_out(pooled, labels, config.data.pooled, generator(config.seed, "pooled"))


def read_partition(config: Config, train: dict[str, np.ndarray], meta: dict[str, Any]) -> partition_file.Clients:
    """Return every client's own (train, test) indices as the file partition.path says; raises UserError."""
    task = tasks.build(config.task.name, meta, train, options=config.task.options())
    checked = not meta.get("stand_in")  # whose classes are not those of the data
    return partition_file.read(
        str(config.partition.path), config.num_clients, partitioned(task, train), check_labels=checked
    )


def partitioned(task: Task, train: Mapping[str, np.ndarray]) -> partition_file.Samples:
    """Return what a partition file is checked against."""
    return partition_file.Samples(task.labels(train), train.get("id"), train.get("group"), train.get("document"))


def data_root(config: Config) -> Path | None:
    """Return the folder of the data sets: data.root, else $FEDKD_DATA, else None."""
    if config.data.root:
        return config.data.root
    return Path(os.environ["FEDKD_DATA"]) if os.environ.get("FEDKD_DATA") else None


def divide(
    config: Config, labels: np.ndarray, groups: np.ndarray | None, documents: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (train, test) indices of every client; a pure function of its arguments.

    `groups` are the natural groups of samples and `documents` the documents that a split must not divide, if any.
    """
    settings = config.partition
    shares = partitions.partition(
        settings.kind,
        labels,
        config.num_clients,
        generator(config.seed, "partition"),
        alpha=settings.alpha,
        classes_per_client=settings.classes_per_client,
        balanced=settings.balanced,
        unbalanced=settings.unbalanced,
        groups=groups,
        min_samples=settings.min_samples,
        options=settings.options,
    )
    return [
        partitions.split(indices, labels, settings.test_fraction, generator(config.seed, "split", client), documents)
        for client, indices in enumerate(shares)
    ]


def prepare(config: Config, world: World, data: Data) -> Simulation:
    """Build this process's networks, codec and clients; raises UserError if configuration and data do not match."""
    device = choose_device(config.device, world.local_rank)
    set_threads(config, world.node_size)
    named, smoothing = config.task, config.local.label_smoothing
    task = tasks.build(named.name, data.meta, data.train, config.evaluate.metrics, smoothing, named.options())
    if config.data.augment and getattr(task, "augment", None) is None:
        raise UserError(f"data.augment: task={config.task.name} has no augmentation; set data.augment=false")
    capacity.require_networks(config, task)
    method = methods.build(config, task)
    for note in (*method.notes, *data.meta.get("notes", ())) if world.is_root else ():
        say(f"fedkd_mpi: {note}")
    families, rank_of_client = assign_clients(config, data, world.world_size)
    own = np.flatnonzero(rank_of_client == world.mpi_rank).tolist()
    clients = {client: Client(client, *data.clients[client]) for client in own}
    if config.privacy.encrypts and not method.exchanges:
        raise UserError(f"method={config.method.name} exchanges nothing: set privacy.encryption=none")
    plan = Plan(config, [len(train) for train, _ in data.clients])
    run = Simulation(
        config=config,
        world=world,
        data=data,
        task=task,
        method=method,
        device=device,
        families=families,
        rank_of_client=rank_of_client,
        clients=clients,
        plan=plan,
        schedule=OwnClients(clients, ClientStateCache(config.clients_in_memory, device, len(clients))),
        exchange=prepare_exchange(config, world, method, device, plan) if method.exchanges else None,
    )
    try_networks(run)
    require_public_stop(config, watched(run).column)
    run.teacher_numbers = count_numbers(config, task)  # after the trial, which says more about an invalid network
    return run


def prepare_exchange(config: Config, world: World, method: Method, device: str, plan: Plan) -> Exchange:
    """Build the student, its codec and, on rank 0, the server; raises UserError if they do not fit what is asked."""
    student = initial_student(config, method, device)
    if student.only_buffers and method.predicts:
        raise UserError(f"{method.role}: the network has no trainable parameters, so nothing would be exchanged")
    codec = factory.build(
        config.compression,
        student.parameter_layers,
        config.rounds,
        config.clients_per_round,
        reserved=reserved_bytes(config, student),
    )
    protection = protection_of(config, method, plan, student, codec)
    server = None
    if world.is_root:
        private = protection.new_sum(student, codec, device) if protection else None
        server = Server(config.server, student, codec, device, config.seed, config.num_clients, private)
    return Exchange(student, student.state.clone(), codec, server, protection=protection)


def reserved_bytes(config: Config, student: FlatModel) -> int:
    """Return the bytes of a message that count towards a byte budget but pass no codec: buffers, nonce and tag."""
    buffers = sum(RECORD_BYTES + 4 * layer.numel for layer in student.exchanged_buffers)
    return buffers + (OVERHEAD if config.privacy.encrypts else 0)


def try_networks(run: Simulation) -> None:
    """Raise UserError if a network of this process's clients cannot be built, trained or stacked."""
    tried = set()
    for client in run.clients.values():
        architecture = run.config.architecture(client.id)
        if len(client.train_indices) == 1 or architecture not in tried:
            require_fit(run.trainer, client)
        tried.add(architecture)
    if run.config.stack > 1:
        for client in run.clients.values():
            run.trainer.stack(client)


def assign_clients(config: Config, data: Data, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the family and the MPI rank of each client, with about the same amount of work for each process."""
    samples = [work(len(train), config.local) for train, _ in data.clients]
    # So large that a usual cohort holds one stack of each family.
    size = config.stack * config.num_clients // config.clients_per_round if config.stack > 1 else 1
    families = cohort.families(samples, config.by_client(range(len(config.architectures))), size)
    _, first, family = np.unique(families, return_index=True, return_inverse=True)
    in_order = first.argsort().argsort()[family]  # families numbered by their first client
    of_family = np.bincount(in_order, samples).astype(np.int64)
    return families, cohort.placement(of_family.tolist(), world_size)[in_order]


def count_numbers(config: Config, task: Task) -> list[int]:
    """Return how many numbers a dense exchange of each client's teacher would send: parameters and float buffers."""
    counts = []
    for architecture in range(len(config.architectures)):
        with torch_scope(config.seed, "teacher shapes"), methods.sizing(config):
            teacher = methods.make_teacher(config, task, architecture)
        with under_key(f"teachers.{architecture}" if config.teachers else "teacher"):
            counts.append(module_tensors.count_numbers(teacher))
    return config.by_client(counts)


def choose_device(device: str, local_rank: int) -> str:
    """Return the torch device of this process; "auto" is a GPU (local rank modulo the number of GPUs), else the CPU.

    Raises UserError if the device does not exist on this node.
    """
    if device == "cpu":
        return device
    import torch

    if not torch.cuda.is_available():
        if device == "auto":
            return "cpu"
        raise UserError(f"device={device}, but torch sees no GPU on this node; use device=cpu or device=auto")
    # Reproducible results on a GPU require this variable before the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    count = torch.cuda.device_count()
    index = int(device.split(":")[1]) if ":" in device else local_rank % count
    if index >= count:
        raise UserError(f"device={device}, but this node has {count} GPU(s)")
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def set_threads(config: Config, node_size: int) -> int:
    """Set torch's number of threads and return it: threads_per_rank or, for "auto", cores per process of the node."""
    import torch

    if config.threads_per_rank == "auto":
        threads = max(1, len(os.sched_getaffinity(0)) // node_size)
    else:
        threads = config.threads_per_rank
        capacity.require_threads(threads)
    torch.set_num_threads(threads)
    return threads
