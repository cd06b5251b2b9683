"""Modules with parameters and buffers as others write them, and the same modules with plain dense ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedkd_mpi.models import Output

WIDTH = 8


def _tied(net: nn.Module) -> None:
    net.two.weight = net.one.weight


def _shared_module(net: nn.Module) -> None:
    net.two = net.one


def _transposed(net: nn.Module) -> None:
    net.one.weight = nn.Parameter(net.one.weight.detach().t().contiguous().t())


def _with_gaps(net: nn.Module) -> None:
    room = torch.zeros(2 * WIDTH, 3 * WIDTH)
    room[::2, ::3] = net.one.weight.detach()
    net.one.weight = nn.Parameter(room[::2, ::3])


def _expanded(net: nn.Module) -> None:
    net.two.bias = nn.Parameter(torch.full((1,), 0.1).expand(WIDTH))


def _scalar(net: nn.Module) -> None:
    net.gain = nn.Parameter(torch.tensor(1.25))


def _empty(net: nn.Module) -> None:
    net.nothing = nn.Parameter(torch.zeros(0, WIDTH))


def _frozen(net: nn.Module) -> None:
    net.two.weight.requires_grad_(False)


def _names_that_meet(net: nn.Module) -> None:
    net.add_module("one_weight", nn.Linear(WIDTH, WIDTH))
    net.after.append(net.one_weight)


def _root_buffer(net: nn.Module) -> None:
    net.register_buffer("center", torch.full((WIDTH,), 0.05))


def _counter(net: nn.Module) -> None:
    net.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def _replaced_counter(net: nn.Module) -> None:
    net.register_buffer("ticks", torch.zeros((), dtype=torch.int32), persistent=False)


def _cumulative_norm(net: nn.Module) -> None:
    net.after.append(nn.BatchNorm1d(WIDTH, momentum=None))


def _shared_statistics(net: nn.Module) -> None:
    first, second = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)
    second.running_mean, second.running_var = first.running_mean, first.running_var
    net.after.extend([first, nn.Tanh(), second])


def _weight_norm(net: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(net.two)


def _old_weight_norm(net: nn.Module) -> None:
    nn.utils.weight_norm(net.two)


FEATURES: dict[str, Callable[[nn.Module], None]] = {
    "tied": _tied,
    "shared module": _shared_module,
    "transposed": _transposed,
    "with gaps": _with_gaps,
    "expanded": _expanded,
    "scalar": _scalar,
    "empty": _empty,
    "frozen": _frozen,
    "names that meet": _names_that_meet,
    "root buffer": _root_buffer,
    "counter": _counter,
    "replaced counter": _replaced_counter,
    "cumulative norm": _cumulative_norm,
    "shared statistics": _shared_statistics,
    "weight norm": _weight_norm,
    "old weight norm": _old_weight_norm,
}
WITH_BUFFERS = {"root buffer", "counter", "replaced counter", "cumulative norm", "shared statistics"}


class Odd(nn.Module):
    """A small network with some of FEATURES; `dense` copies every parameter into memory of its own, rows first."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, traits: Sequence[str], dense: bool = False):
        super().__init__()
        self.hidden_sizes = (WIDTH,)
        self.first, self.one, self.two = (
            nn.Linear(n, WIDTH) for n in (math.prod(input_shape), WIDTH, WIDTH)
        )  # fmt: skip
        self.after = nn.ModuleList()
        for name in traits:
            FEATURES[name](self)
        self.head = nn.Linear(WIDTH, num_classes)
        if dense:
            for parameter in self.parameters():
                parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Output:
        x = torch.tanh(self.first(x.flatten(1)))
        x = torch.tanh(self.two(torch.tanh(self.one(x))))
        for module in self.after:
            x = module(x)
        if hasattr(self, "center"):
            x = x - self.center
        if hasattr(self, "gain"):
            x = x * self.gain
        if hasattr(self, "steps"):  # a schedule of the module's own, counted in place
            x = x * (1 + 0.01 * self.steps)
            self.steps += self.training
        if hasattr(self, "ticks"):  # and one that puts a new tensor in place of the old
            x = x * (1 - 0.01 * self.ticks)
            if self.training:
                self.ticks = self.ticks + 1
        return Output(self.head(x), (x,))


def _complex(net: nn.Module) -> None:
    net.filter = nn.Parameter(torch.zeros(4, dtype=torch.complex64))


def _lazy(net: nn.Module) -> None:
    net.late = nn.LazyLinear(4)


def _half(net: nn.Module) -> None:
    net.two.half()


def _double_buffer(net: nn.Module) -> None:
    net.register_buffer("ema", torch.zeros(4, dtype=torch.float64))


def _sparse(net: nn.Module) -> None:
    net.graph = nn.Parameter(torch.eye(4).to_sparse())


def _one_memory(net: nn.Module) -> None:
    net.copy = nn.Parameter(net.one.weight.detach())


def _half_of_another(net: nn.Module) -> None:
    net.part = nn.Parameter(net.one.weight.detach()[2:5])


def _spectral_norm(net: nn.Module) -> None:
    nn.utils.parametrizations.spectral_norm(net.two)


def _old_spectral_norm(net: nn.Module) -> None:
    net.two = nn.utils.spectral_norm(net.two)


def _script(net: nn.Module) -> None:
    net.fast = torch.jit.script(nn.BatchNorm1d(WIDTH))


def _untrained(net: nn.Module) -> None:
    net.requires_grad_(False)


REFUSED: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "complex": (_complex, "filter is complex64"),
    "lazy": (_lazy, "late.weight has no size"),
    "half": (_half, "two.weight is float16"),
    "double buffer": (_double_buffer, "ema is float64"),
    "sparse": (_sparse, "graph is torch.sparse"),
    "one memory": (_one_memory, "one.weight"),
    "half of another": (_half_of_another, "one.weight"),
    "spectral norm": (_spectral_norm, "power iterate"),
    "old spectral norm": (_old_spectral_norm, "power iterate"),
    "script": (_script, "is in a TorchScript module"),
}


class Refused(Odd):
    """A network with something that cannot be exchanged."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, what: str):
        super().__init__(input_shape, num_classes, traits=[])
        REFUSED[what][0](self)


class Untrained(Odd):
    """Nothing in it is trained."""

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        super().__init__(input_shape, num_classes, traits=[])
        _untrained(self)


class BareTensor(Odd):
    """Returns its logits alone."""

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        super().__init__(input_shape, num_classes, traits=[])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).logits


class WrongWidths(BareTensor):
    """Says that its hidden features are wider than they are."""

    def forward(self, x: Tensor) -> Output:
        return Odd.forward(self, x)

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        super().__init__(input_shape, num_classes)
        self.hidden_sizes = (WIDTH + 1,)


def dense_clone(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters lie densely, rows first."""
    clone = copy.deepcopy(module)
    for parameter in clone.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    return clone


class NanInEvaluation(Odd):
    """Learns, and gives NaN when it is scored."""

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        super().__init__(input_shape, num_classes, traits=[])

    def forward(self, x: Tensor) -> Output:
        output = super().forward(x)
        return output if self.training else output._replace(logits=output.logits * float("nan"))


def _count_calls(net: nn.Module, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + net.training
    return x * (1 + 0.01 * net.calls)


def _bare_tensor_as_state(net: nn.Module, x: Tensor) -> Tensor:
    net.mean = 0.9 * getattr(net, "mean", torch.zeros(WIDTH)) + 0.1 * x.detach().mean(0)
    return x - net.mean


def _list_as_state(net: nn.Module, x: Tensor) -> Tensor:
    net.__dict__.setdefault("seen", []).append(float(x.detach().mean()))
    return x * len(net.seen)


def _late_parameter(net: nn.Module, x: Tensor) -> Tensor:
    if not hasattr(net, "late"):
        net.late = nn.Parameter(torch.ones(WIDTH))
    return x * net.late


def _late_buffer(net: nn.Module, x: Tensor) -> Tensor:
    if not hasattr(net, "late"):
        net.register_buffer("late", torch.ones(WIDTH))
    return x * net.late


def _new_parameter(net: nn.Module, x: Tensor) -> Tensor:
    net.two.weight = nn.Parameter(net.two.weight.detach() * 1.0)
    return net.two(x)


def _remembered_for_plots(net: nn.Module, x: Tensor) -> Tensor:
    net.last = x.detach()
    return x


STATES: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str | None]] = {
    "calls": (_count_calls, "calls changes"),
    "bare tensor": (_bare_tensor_as_state, "mean changes"),
    "list": (_list_as_state, "seen changes"),
    "late parameter": (_late_parameter, "makes the parameter late"),
    "late buffer": (_late_buffer, "makes the buffer late"),
    "new parameter": (_new_parameter, "replaces the parameter two.weight"),
    "for plots": (_remembered_for_plots, None),
}


class Stateful(Odd):
    """Keeps something of one forward pass for the next, outside of its buffers."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, what: str):
        super().__init__(input_shape, num_classes, traits=[])
        self.what = what

    def forward(self, x: Tensor) -> Output:
        x = STATES[self.what][0](self, torch.tanh(self.first(x.flatten(1))))
        return Output(self.head(x), (x,))


class Embeds(Odd):
    """Adds an embedding of a number that it makes of each sample."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, padding: int | None, sparse: bool = False):
        super().__init__(input_shape, num_classes, traits=[])
        self.table = nn.Embedding(4, WIDTH, padding_idx=padding, sparse=sparse)

    def forward(self, x: Tensor) -> Output:
        token = (x.flatten(1).sum(1).abs() * 3).long() % 4
        x = torch.tanh(self.first(x.flatten(1))) + self.table(token)
        return Output(self.head(x), (x,))
