"""The model card of an exported network: what it is, what it reads, how it scored, and the run that it comes from."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch

from fedkd_mpi import __version__, costlog
from fedkd_mpi.models.output import Texts
from fedkd_mpi.simulation.trained import Source

# Keys of a data set's meta.
OF_INPUTS = ("features", "scale", "mean", "std", "window", "range", "vocabulary", "length", "pad", "tokenizer")
OF_CLASSES = ("classes", "kinds")


def card(source: Source, client: int | None) -> dict[str, Any]:
    """Return the card, JSON-able, of the global student (`client` None) or of a client's teacher."""
    config, meta = source.config, source.manifest.data["meta"]
    if client is None:
        role = config.averaging.network if config.averages else "student"
        network = config.network(role)
        scores = _student_scores(source)
    else:
        network = config.architectures[config.architecture(client)]
        scores = _teacher_scores(source, client)
    shape = source.shapes.input_shape
    return {
        "network": {"name": network.name, **network.options()},
        "role": "global student" if client is None else f"teacher of client {client}",
        "round": source.manifest.rounds,
        "task": config.task.name,
        "data": config.data.name,
        "input_shape": shape._asdict() if isinstance(shape, Texts) else list(shape),
        "outputs": source.shapes.num_classes,
        "inputs": {key: meta[key] for key in OF_INPUTS if key in meta},
        "classes": next((meta[key] for key in OF_CLASSES if key in meta), []),
        "scores": scores,
        "method": config.method.name,
        "run": config.name,
        "seed": config.seed,
        "config_digest": source.attrs["config_digest"],
        "log_sha256": hashlib.sha256(source.log.read_bytes()).hexdigest(),
        "fedkd_mpi": __version__,
        "torch": torch.__version__,
    }


def text(made: dict[str, Any], use: str) -> str:
    """Return a card as Markdown; `use` is the Python program that shows how the file is used."""
    rows = [("network", _line(made["network"])), ("role", made["role"]), ("completed rounds", made["round"])]
    rows += [("task", made["task"]), ("data set", made["data"]), ("input", _line(made["input_shape"]))]
    rows += [(f"of the inputs: {key}", _line(value)) for key, value in made["inputs"].items()]
    rows += [("classes", ", ".join(map(str, made["classes"])) or f"none; {made['outputs']} outputs")]
    rows += [(name, f"{value:.6g}") for name, value in made["scores"].items()]
    rows += [("method", made["method"]), ("run", f"{made['run']}, seed {made['seed']}")]
    rows += [("digest of the configuration", made["config_digest"]), ("SHA-256 of the log", made["log_sha256"])]
    rows += [("made with", f"fedkd_mpi {made['fedkd_mpi']}, torch {made['torch']}")]
    table = "\n".join(f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows)
    title = f"# {made['network']['name']}, {made['role']}"
    return f"{title}\n\n| | |\n|---|---|\n{table}\n\n```python\n{use.strip()}\n```\n"


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {json.dumps(each)}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _student_scores(source: Source) -> dict[str, float]:
    with costlog.open(source.log) as log:
        rounds, at = log["rounds"], source.manifest.rounds - log["rounds"]["round"][0] - 1
        found = {
            f"{metric}, global test set": rounds[f"global_student_{metric}"][at] for metric in log.attrs["metrics"]
        }
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def _teacher_scores(source: Source, client: int) -> dict[str, float]:
    """A client's own scores in the round in which it was last trained."""
    with costlog.open(source.log) as log:
        training = log["training"]
        rows = (training["client"] == client) & (training["round"] < source.manifest.rounds)
        found = {
            f"{metric}, the client's own test samples": training[f"teacher_{metric}"][rows][-1:].tolist()
            for metric in log.attrs["metrics"]
        }
    return {name: float(value[0]) for name, value in found.items() if value and not math.isnan(value[0])}
