"""Networks tried out before the first round: what they return, and whether they can be trained on what clients hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.client.client import Client
from fedkd_mpi.client.trainer import LocalTrainer
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output


def require_fit(bench: LocalTrainer, client: Client) -> None:
    """Raise UserError where a client's networks return what no loss can take, or cannot be trained on its samples.

    The networks end as they began.
    """
    private = bench.networks_for(client.id)
    config, student = bench.config, bench.student
    role = bench.method.role
    networks = [(_key(bench, client), private, private.module["teacher"])] if "teacher" in private.module else []
    networks += [(role, student, student.module)] if student else []
    for key, network, model in networks:
        state, others = network.state.clone(), network.others.clone()
        with torch_scope(config.seed, "trial", device=bench.device), torch.no_grad():
            _forward(bench, client, key, model)
            if len(client.train_indices) == 1 or config.local.batch_size == 1:
                _train_on_one(bench, client, key, model)
        network.load(state)
        network.others.copy_(others)


def _key(bench: LocalTrainer, client: Client) -> str:
    return f"teachers.{bench.config.architecture(client.id)}" if bench.config.teachers else "teacher"


def _forward(bench: LocalTrainer, client: Client, key: str, model: nn.Module) -> None:
    model.eval()
    try:
        batch = bench.task.prepare(bench.arrays, client.train_indices[:2], bench.device)
        output = bench.task.predict(model, batch)
    finally:
        model.train()
    if problem := _problem(output, model, len(next(iter(batch.values())))):
        raise UserError(f"{key}: the network returns {problem}; see docs/extending.md, a model")


def _problem(output: Any, model: nn.Module, count: int) -> str | None:
    """What is wrong with what a model has returned for `count` samples, as far as can be told of any task."""
    if isinstance(output, Tensor):
        return "a tensor in place of fedkd_mpi.models.Output(logits, hidden)"
    if not isinstance(output, Output):
        return None  # a task of one's own may have an output of its own
    if output.logits.dim() and output.logits.shape[0] != count:
        return f"logits of shape {list(output.logits.shape)} for {count} samples"
    if not isinstance(output.hidden, (tuple, list)) or not isinstance(output.attention, (tuple, list)):
        return "hidden features or attention maps that are no tuple of tensors"
    widths = [int(hidden.shape[-1]) if hidden.dim() else 0 for hidden in output.hidden]
    if widths != list(model.hidden_sizes):
        return f"hidden features of widths {widths}, and its hidden_sizes are {list(model.hidden_sizes)}"
    return None


def _train_on_one(bench: LocalTrainer, client: Client, key: str, model: nn.Module) -> None:
    try:
        bench.task.predict(model, bench.task.prepare(bench.arrays, client.train_indices[:1], bench.device))
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        why = "has one training sample" if len(client.train_indices) == 1 else "trains on batches of one sample"
        raise UserError(
            f"client {client.id} {why}, and {key} normalises over the samples of a batch, which takes two: choose"
            " norm=group, larger parts (partition.min_samples) or batches (local.batch_size)"
        ) from None
