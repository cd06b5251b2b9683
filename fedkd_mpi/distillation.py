"""Adaptive mutual distillation: equations 1-7 of FedKD (Wu et al., Nature Communications 13:2032, 2022) on outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output


class Losses(NamedTuple):
    """The terms of one batch, 0-d tensors without graph; distillation and features are not yet divided by D."""

    supervised_teacher: Tensor
    supervised_student: Tensor
    distillation_teacher: Tensor
    distillation_student: Tensor
    features: Tensor
    denominator: Tensor

    @property
    def teacher(self) -> Tensor:
        """The loss of the teacher, equation 6."""
        return self.supervised_teacher + (self.distillation_teacher + self.features) / self.denominator

    @property
    def student(self) -> Tensor:
        """The loss of the student, equation 7."""
        return self.supervised_student + (self.distillation_student + self.features) / self.denominator


def fedkd_loss(
    teacher: Output,
    student: Output,
    supervised_teacher: Tensor,
    supervised_student: Tensor,
    hidden_map: HiddenMap | None,
    *,
    adaptive: bool,
    logits: bool,
    hidden: bool,
    attention: bool,
    floor: float,
    distance: Callable[[Output, Output], Tensor],
) -> tuple[Tensor, Losses]:
    """Return the scalar whose gradient contains those of teacher, student and W_h, and its terms.

        L_t + L_s + [ distance(S, T) + distance(T, S) + MSE(H_t, W_h H_s) + MSE(A_t, A_s) ] / sg(max(L_t + L_s, floor))

    `distance(reference, output)` treats its reference as a constant, and D is a constant (sg). So the gradient with
    respect to the teacher is that of equation 6, and the gradient with respect to the student is that of equation 7.
    The feature terms are in both equations but appear here once: their sum has the gradients with respect to both
    networks and W_h.

    `supervised_*` are equations 1 and 2, means over the batch. With adaptive=False D is 1. `hidden_map` may be None
    without `hidden`. Attention maps are used if both models have them; raises UserError if only one has.
    """
    zero = torch.zeros_like(supervised_teacher)
    to_teacher, to_student = (distance(student, teacher), distance(teacher, student)) if logits else (zero, zero)
    features = zero
    if hidden:
        assert hidden_map is not None
        features = hidden_map(teacher.hidden, student.hidden, teacher.mask)
    if attention and (teacher.attention or student.attention):
        features = features + attention_error(teacher.attention, student.attention, teacher.mask)
    supervised = supervised_teacher + supervised_student
    denominator = supervised.detach().clamp_min(floor) if adaptive else torch.ones_like(zero)
    total = supervised + (to_teacher + to_student + features) / denominator
    terms = (supervised_teacher, supervised_student, to_teacher, to_student, features, denominator)
    return total, Losses(*(term.detach() for term in terms))


def kl_divergence(reference_logits: Tensor, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return KL(reference || prediction) in nats, the mean over the rows of [..., C], or over the rows in `mask` [...].

    The reference is a constant: the student in equation 3, the teacher in equation 4. There is no temperature. A mask
    without true entries gives 0. Raises ValueError for different shapes, which torch would broadcast.
    """
    reference_logits, logits = _constant_reference(reference_logits, logits, mask)
    rows = logits.numel() // logits.shape[-1]
    reference, prediction = functional.log_softmax(reference_logits, -1), functional.log_softmax(logits, -1)
    # As torch's kl_div, which has no vmap rule and whose "mean" also divides by the number of classes.
    return (reference.exp() * (reference - prediction)).sum() / max(rows, 1)


def squared_error(reference: Tensor, prediction: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over all elements of (prediction - reference)^2 for regression; the reference is a constant.

    `mask` selects along the leading dimensions; without true entries the result is 0. Raises ValueError for different
    shapes.
    """
    reference, prediction = _constant_reference(reference, prediction, mask)
    return functional.mse_loss(prediction, reference, reduction="sum") / max(prediction.numel(), 1)


def pair_layers(depth_teacher: int, depth_student: int) -> list[tuple[int, int]]:
    """Return (teacher layer, student layer) from input to output, paired from the top.

    The two top layers are a pair. Downwards, every depth_teacher/depth_student-th teacher layer (rounded to the top) is
    paired with the next student layer: 12 and 4 give (2, 0), (5, 1), (8, 2), (11, 3). For a student deeper than its
    teacher the roles are exchanged: every teacher layer has a partner, and some student layers have none.
    """
    if depth_student > depth_teacher:
        return [(low, high) for high, low in pair_layers(depth_student, depth_teacher)]
    steps = reversed(range(depth_student))
    return [(depth_teacher - 1 - step * depth_teacher // depth_student, depth_student - 1 - step) for step in steps]


class HiddenMap(nn.Module):
    """W_h of equation 5: learnable linear maps from student to teacher features, without bias; private to a client.

    There is one matrix [d_teacher, d_student] per pair of layers, or with `shared` a single one for all pairs, as in
    the paper, where all layers have the same width. `teacher_sizes` and `student_sizes` are the hidden_sizes of the
    models. Raises UserError if a model has no hidden features, or with `shared` if the widths differ.
    """

    def __init__(self, teacher_sizes: Sequence[int], student_sizes: Sequence[int], *, shared: bool = False):
        super().__init__()
        for name, sizes in (("teacher", teacher_sizes), ("student", student_sizes)):
            if not sizes:
                raise UserError(f"distillation.hidden: the {name} has no hidden layers; set distillation.hidden=false")
        self.pairs = pair_layers(len(teacher_sizes), len(student_sizes))
        shapes = [(student_sizes[s], teacher_sizes[t]) for t, s in self.pairs]
        if shared and len(set(shapes)) > 1:
            raise UserError(
                f"distillation.shared_map: paired layers of different widths (student, teacher: {shapes})"
                " need one map per pair; set distillation.shared_map=false"
            )
        self.maps = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in (shapes[:1] if shared else shapes))

    def forward(
        self, teacher_hidden: Sequence[Tensor], student_hidden: Sequence[Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Return MSE(H_t, W_h H_s), the mean over elements, then over pairs; of texts only where `mask` is true."""
        rows = ... if mask is None else mask
        errors = [
            functional.mse_loss(linear(student_hidden[s][rows]), teacher_hidden[t][rows])
            for (t, s), linear in zip(self.pairs, cycle(self.maps), strict=False)
        ]
        return torch.stack(errors).mean()


def attention_error(teacher: Sequence[Tensor], student: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Return MSE(A_t, A_s) of the maps [N, heads, L, L] of paired layers, the mean over elements and then over pairs.

    Maps with different numbers of heads are averaged over heads first. Only entries between positions in `mask` [N, L]
    count, so that the result does not depend on padding. Raises UserError if only one side has maps.
    """
    if not (teacher and student):
        owner = "teacher" if teacher else "student"
        raise UserError(f"distillation.attention: only the {owner} has attention; set distillation.attention=false")
    errors = []
    for t, s in pair_layers(len(teacher), len(student)):
        maps = teacher[t], student[s]
        if maps[0].shape[1] != maps[1].shape[1]:
            maps = maps[0].mean(1, keepdim=True), maps[1].mean(1, keepdim=True)
        if mask is not None:
            real = mask[:, :, None] & mask[:, None, :]
            maps = maps[0].transpose(0, 1)[:, real], maps[1].transpose(0, 1)[:, real]
        errors.append(functional.mse_loss(*maps))
    return torch.stack(errors).mean()


def _constant_reference(reference: Tensor, prediction: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if reference.shape != prediction.shape:
        shapes = f"{tuple(reference.shape)} and {tuple(prediction.shape)}"
        raise ValueError(f"teacher and student outputs differ in shape: {shapes}")
    reference = reference.detach()
    return (reference, prediction) if mask is None else (reference[mask], prediction[mask])
