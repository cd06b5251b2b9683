"""Trial of the networks before the first round: checks of their outputs and of training on a client's samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd_mpi.client import left_state
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.trainer import LocalTrainer
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import NetworkConfig
from fedkd_mpi.errors import RunFault, UserError, one_line
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.output import Output, hidden_sizes
from fedkd_mpi.tasks import Examples
from fedkd_mpi.tasks.own_metrics import require_declared

CLASSIFIERS = ("image_classification", "text_classification")  # tasks whose logits are [N, classes]


def require_fit(trainer: LocalTrainer, client: Client) -> None:
    """Raise UserError if the outputs of a client's networks are invalid or the networks cannot train on its samples.

    The networks have the same values before and after.
    """
    private = trainer.networks_for(client.id)
    config, student = trainer.config, trainer.student
    role = trainer.method.role
    networks = [(_key(trainer, client), private, private.module["teacher"])] if "teacher" in private.module else []
    networks += [(role, student, student.module)] if student and trainer.method.predicts else []
    for key, network, model in networks:
        state, others, tensors = network.state.clone(), network.others.clone(), left_state.tensors_of(model)
        with torch_scope(config.seed, "trial", device=trainer.device), torch.no_grad():
            _forward(trainer, client, key, network, model, tensors)
            if len(client.train_indices) == 1 or config.local.batch_size == 1:
                _train_on_one(trainer, client, key, model)
        network.load(state)
        network.others.copy_(others)


def _key(trainer: LocalTrainer, client: Client) -> str:
    return f"teachers.{trainer.config.architecture(client.id)}" if trainer.config.teachers else "teacher"


def _forward(
    trainer: LocalTrainer, client: Client, key: str, network: FlatModel, model: nn.Module, tensors: left_state.Tensors
) -> None:
    own_scores = ":" in trainer.config.task.name or trainer.config.evaluate.metrics
    own = own_scores or any(":" in network.name for network in _networks(trainer.config))
    model.eval()
    try:
        batch = trainer.task.prepare(trainer.arrays, client.train_indices[:2], trainer.device)
        output = trainer.task.predict(model, batch)
        count = len(next(iter(batch.values())))
        if problem := _problem(output, model, count, trainer):
            raise UserError(f"{key}: the network returns {problem}; see docs/extending.md, a model")
        loss = trainer.task.loss(output, batch)
        if not isinstance(loss, Tensor) or loss.dim():
            raise UserError(f"task={trainer.config.task.name}: loss() must return a tensor with one number")
        if own_scores:
            _score(trainer, output, batch)
        if trainer.student and (model is trainer.student.module or not trainer.method.predicts):
            trainer.method.examine(trainer.student.module, batch)
        if count > 1:
            _require_no_left_state(trainer, key, network, model, tensors, batch)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if not own:
            raise
        raise UserError(f"{key}: a trial on {len(client.train_indices[:2])} samples: {one_line(error)}") from error
    finally:
        model.train()


def _require_no_left_state(
    trainer: LocalTrainer,
    key: str,
    network: FlatModel,
    model: nn.Module,
    tensors: left_state.Tensors,
    batch: Examples,
) -> None:
    """Raise UserError if a forward pass in training leaves state in a network beside its parameters and buffers."""
    state, others = network.state.clone(), network.others.clone()

    def forward() -> Any:
        with torch_scope(trainer.config.seed, "trial of state", device=trainer.device):
            return trainer.task.predict(model, batch)

    def restore() -> None:
        network.gather()
        network.load(state)
        network.others.copy_(others)

    model.train()
    trainer.method.begin(0, trainer.device)
    try:
        left_state.require_none(model, tensors, forward, restore)
        restore()
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except RunFault as fault:
        raise UserError(f"{key}: {fault.layer}: {fault}") from None


def _score(trainer: LocalTrainer, output: Any, batch: Examples) -> None:
    task, who = trainer.task, f"task={trainer.config.task.name}"
    sums = np.asarray(task.score(output, batch), np.float64)
    if sums.shape != (task.sums,):
        names = ", ".join([who, *trainer.config.evaluate.metrics])
        raise UserError(f"{names}: score() returns {list(sums.shape)} numbers together, but `sums` is {task.sums}")
    require_declared(who, task.finish(sums), task.metrics)


def _networks(config: Config) -> list[NetworkConfig]:
    return [config.student, *config.architectures]


def _problem(output: Any, model: nn.Module, count: int, trainer: LocalTrainer) -> str | None:
    """Return what is wrong with a model's output for `count` samples, or None."""
    if isinstance(output, Tensor):
        return "a tensor instead of fedkd_mpi.models.Output(logits, hidden)"
    if not isinstance(output, Output):
        if ":" in trainer.config.task.name:
            return None  # a user's task may have an output type of its own
        return f"a {type(output).__name__} instead of logits or fedkd_mpi.models.Output(logits, hidden)"
    if output.logits.dim() and output.logits.shape[0] != count:
        return f"logits of shape {list(output.logits.shape)} for {count} samples"
    if trainer.config.task.name in CLASSIFIERS and output.logits.shape[1:] != (classes := trainer.task.num_classes,):
        return f"logits of shape {list(output.logits.shape)} for {count} samples and {classes} classes"
    if not isinstance(output.hidden, (tuple, list)) or not isinstance(output.attention, (tuple, list)):
        return "hidden features or attention maps that are not a tuple of tensors"
    widths = [int(hidden.shape[-1]) if hidden.dim() else 0 for hidden in output.hidden]
    if widths != list(hidden_sizes(model)):
        return f"hidden features of widths {widths}, but its hidden_sizes are {list(hidden_sizes(model))}"
    rows = [list(hidden.shape) for hidden in output.hidden if hidden.shape[0] != count]
    if rows and trainer.config.task.name in CLASSIFIERS:
        return f"hidden features of shape {rows[0]} for {count} samples"
    return None


def _train_on_one(trainer: LocalTrainer, client: Client, key: str, model: nn.Module) -> None:
    try:
        trainer.task.predict(model, trainer.task.prepare(trainer.arrays, client.train_indices[:1], trainer.device))
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        why = "has one training sample" if len(client.train_indices) == 1 else "trains on batches of one sample"
        raise UserError(
            f"client {client.id} {why}, but {key} normalises over the samples of a batch, which takes two: choose"
            " norm=group, larger parts (partition.min_samples) or batches (local.batch_size)"
        ) from None
