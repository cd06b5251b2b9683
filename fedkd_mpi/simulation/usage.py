"""The program in a model card that shows how the exported file is used."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fedkd_mpi.models import factory_of, plain

PICTURES = """
mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ({mean}, {std}))
inputs = (pixels * {scale} - mean) / std  # pixels: [N, {sides}] as in the data set
"""
ROWS = """
inputs = (rows - torch.tensor({mean})) / torch.tensor({std})  # rows: float32 [N, {sides}] as in the data set
"""


def of_tensors(module: nn.Module, card: dict[str, Any], file: str) -> str:
    """Return the program that loads a file of tensors: without this package, where the network knows nothing of it."""
    options = dict(card["network"])
    name, shape, outputs = options.pop("name"), card["input_shape"], card["outputs"]
    imports, inputs = ["from safetensors.torch import load_file"], _inputs(card)
    if plain.is_adapted(module):
        package, _, function = name.partition(":")
        bound = plain.arguments(factory_of(name, "network"), tuple(shape), outputs, options)
        made, logits = f"{function}({_written(bound)})", "model(inputs)"
        imports.append(f"from {package} import {function}")
    else:
        of_texts = isinstance(shape, dict)
        imports += ["from fedkd_mpi import models"]
        imports += ["from fedkd_mpi.models.output import Texts  # the input shape of encoders"] if of_texts else []
        sides = f"Texts(**{shape})" if of_texts else repr(tuple(shape))
        made, logits = f"models.build({name!r}, {sides}, {outputs}, {options})", "model(inputs).logits"
    lines = [f"model = {made}.eval()", f'model.load_state_dict(load_file("{file}"))', *inputs, f"logits = {logits}"]
    return "\n".join([*(["import torch"] if inputs else []), *imports, "", *lines])


def of_graph(module: nn.Module, card: dict[str, Any], file: str) -> str:
    """Return the program that runs an ONNX file."""
    run = f'logits, = onnxruntime.InferenceSession("{file}").run(None, {{"input": inputs}})'
    return f"import onnxruntime\n\n{run}"


def _written(bound: inspect.BoundArguments) -> str:
    """Return the arguments of a call as Python has them, by name where that can be."""
    words = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            words += [f"{key}={each!r}" for key, each in value.items()]
        else:
            words.append(repr(value) if kind is inspect.Parameter.POSITIONAL_ONLY else f"{name}={value!r}")
    return ", ".join(words)


def _inputs(card: dict[str, Any]) -> list[str]:
    """Return the lines that make `inputs` of samples as the data set yields them; none where the task has others."""
    told, text = card["inputs"], {"image_classification": PICTURES, "tabular": ROWS}.get(card["task"])
    if text is None or not {"mean", "std"} <= told.keys():
        return []
    sides = ", ".join(map(str, card["input_shape"]))
    return text.format(mean=told["mean"], std=told["std"], scale=told.get("scale", 1), sides=sides).strip().splitlines()
