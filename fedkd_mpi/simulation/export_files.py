"""Trained networks as files that others read: safetensors, a Hugging Face folder, ONNX, each with its model card."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.models.output import Output, Texts
from fedkd_mpi.simulation.card import text
from fedkd_mpi.simulation.trained import Source
from fedkd_mpi.simulation.usage import of_graph, of_tensors

Card = dict[str, Any]
Use = Callable[[nn.Module, Card, str], str]  # returns a program for the name of a file


def write(module: nn.Module, source: Source, card: Card, target: Path, *, overwrite: bool) -> list[Path]:
    """Write a network under the name `target`, whose ending says what it becomes; returns the files.

    .safetensors and .onnx are files with a card beside them, FILE.md; without an ending it is a Hugging Face
    folder, of encoders of texts alone. Raises UserError where that cannot be, or where the target is there already and
    not `overwrite`.
    """
    kinds: dict[str, Callable[[], list[Path]]] = {
        ".safetensors": lambda: _file(target, module, card, of_tensors, lambda path: write_tensors(module, card, path)),
        ".onnx": lambda: _file(target, module, card, of_graph, lambda path: write_onnx(module, source, card, path)),
        "": lambda: _folder(target, lambda path: write_folder(module, source, card, path)),
    }
    if target.suffix not in kinds:
        raise UserError(f"--to {shown(target)} must end in .safetensors or .onnx, or be a folder without an ending")
    there = [path for path in (target, beside(target)) if path.exists() and (target.suffix or path == target)]
    if there and not overwrite:
        raise UserError(f"{shown(there[0])} exists: choose another name with --to, or replace it with --overwrite")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return kinds[target.suffix]()
    except OSError as error:
        raise UserError(f"cannot write {shown(target)}: {error.strerror or error}") from None


def write_tensors(module: nn.Module, card: Card, path: Path) -> None:
    """Write the state_dict of a module, row-major, its card in the file's own metadata."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(tensors, path, {"format": "pt", "fedkd_mpi": json.dumps(card)})


def write_onnx(module: nn.Module, source: Source, card: Card, path: Path) -> None:
    """Write a network from "input" to "logits", the first side of both being any number of samples."""
    try:
        import onnx
        import onnxscript  # noqa: F401  the exporter of torch needs it
    except ImportError as error:
        raise UserError(f"ONNX needs a library that is not there ({error}): pip install 'fedkd-mpi[export]'") from None
    shape = source.shapes.input_shape
    if isinstance(shape, Texts):
        if shape.head == "candidate":
            raise UserError(
                f"task={source.config.task.name}: a ranking of news takes three inputs, and is not made an ONNX file"
            )
        example = torch.randint(0, shape.vocabulary, (2, shape.length))
        example[1, shape.length // 2 :] = shape.pad
        wrapped: nn.Module = _Reader(module, shape.pad)
        axes = {0: torch.export.Dim("samples"), 1: torch.export.Dim("tokens", max=shape.length)}
    else:
        example = torch.zeros(2, *shape)
        wrapped, axes = _Logits(module), {0: torch.export.Dim("samples")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every library that is not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped.eval(),
                (example,),
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=(axes,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch names what it cannot translate by many types of its own
        raise UserError(
            f"torch.onnx cannot translate this network ({' '.join(str(error).split())[:200]});"
            " export it as .safetensors"
        ) from None
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"fedkd_mpi": json.dumps(card)})
    onnx.save_model(model, str(path))


class _Logits(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found: Output = self.network(x)
        return found.logits


class _Reader(nn.Module):
    """An encoder with its head, texts read all at once: models/bert.py sorts them by length, which is no graph."""

    def __init__(self, network: Any, pad: int):
        super().__init__()
        self.encoder, self.head, self.pad = network.encoder, network.head, pad

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.pad
        hidden = self.encoder(ids, attention_mask=mask.long()).last_hidden_state
        return self.head(hidden, mask)


def write_folder(module: nn.Module, source: Source, card: Card, folder: Path) -> None:
    """Write an encoder of texts as a Hugging Face folder; raises UserError for other networks."""
    from fedkd_mpi.models.hugging_face import save

    shape = source.shapes.input_shape
    if not isinstance(shape, Texts) or not hasattr(module, "encoder"):
        raise UserError(
            f"{card['network']['name']} is no encoder of texts, and makes no Hugging Face folder: name a file that ends"
            " in .safetensors or .onnx"
        )
    use = save(module, shape, source.tokenizer(), [str(name) for name in card["classes"]], folder)
    (folder / "README.md").write_text(text(card, use), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")


def _file(
    target: Path,
    module: nn.Module,
    card: Card,
    use: Callable[[nn.Module, Card, str], str],
    make: Callable[[Path], None],
) -> list[Path]:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(handle)
    new = Path(name)
    try:
        make(new)
        new.chmod(0o666 & ~_umask())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
    beside(target).write_text(text(card, use(module, card, target.name)), encoding="utf-8")
    return [target, beside(target)]


def beside(target: Path) -> Path:
    """Return the name of the card of a file."""
    return target.with_name(f"{target.name}.md")


def _folder(target: Path, make: Callable[[Path], None]) -> list[Path]:
    new = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        make(new)
        new.chmod(0o777 & ~_umask())
        if target.is_symlink() or target.is_file():
            raise UserError(f"{shown(target)} is no folder: choose another name with --to")
        if target.exists():
            shutil.rmtree(target)
        new.replace(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return sorted(target.iterdir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
