"""Record real updates for the codec benchmarks: python -m benchmarks.record_updates [NAME ...] (needs FEDKD_DATA).

Two clients with non-IID data and optimisers that they keep between rounds train a student by federated averaging. The
updates of the last rounds are saved: those of client 0 for tuning a codec, those of client 1 for published results.
They are written to $FEDKD_UPDATES (default benchmarks/updates), one file NAME.npz with arrays "client/round/layer", and
are not part of the repository.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd_mpi import datasets, models
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope

FOLDER = Path(os.environ.get("FEDKD_UPDATES", Path(__file__).parent / "updates"))
CLIENTS, RECORDED = 2, 3
WORDS, LENGTH, WIDTH, DEPTH, HEADS = 12000, 48, 768, 4, 12


class Bert(nn.Module):
    """A new text classifier with the shape of the paper's 4-layer student (width 768, 12 heads, 3072 hidden units)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 2)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]])
        blocked = (tokens == 0)[:, None, None, :]
        for block in self.blocks:
            x = block(x, blocked)
        return self.head(x.masked_fill((tokens == 0)[..., None], 0).sum(1) / (tokens != 0).sum(1, keepdim=True))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=~blocked).transpose(1, 2).flatten(-2)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def _sentences(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids [n, LENGTH] (0: padding, 1: start, 2: unknown word) and labels of the sentences."""
    folder = root / "ade-corpus-v2"
    positive = {line.split("|")[1] for line in (folder / "DRUG-AE.rel").read_text(encoding="utf-8").splitlines()}
    negative = {line.split(" NEG ", 1)[1] for line in (folder / "ADE-NEG.txt").read_text(encoding="utf-8").splitlines()}
    texts = [(text, 1) for text in sorted(positive)] + [(text, 0) for text in sorted(negative)]
    split = [re.findall(r"[a-z]+|[^a-z\s]", text.lower()) for text, _ in texts]
    words, counts = np.unique(np.concatenate(split), return_counts=True)
    kept = words[np.lexsort((words, -counts))][: WORDS - 3]
    number = {str(word): index + 3 for index, word in enumerate(kept)}
    tokens = np.zeros((len(split), LENGTH), np.int64)
    for row, sentence in zip(tokens, split, strict=True):
        ids = [1, *(number.get(word, 2) for word in sentence)][:LENGTH]
        row[: len(ids)] = ids
    return tokens, np.array([label for _, label in texts])


def _images(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    data = datasets.load(name, root, seed=0)
    mean, std = (np.float32(data.meta[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    return (data.train["x"] * np.float32(data.meta["scale"]) - mean) / std, data.train["y"]


def _skewed_halves(labels: np.ndarray, share: float = 0.8) -> list[np.ndarray]:
    """Return the indices of both clients; client 0 gets `share` of every even class, client 1 of every odd class."""
    rng = generator(0, "halves")
    to_first = rng.random(len(labels)) < np.where(labels % 2 == 0, share, 1 - share)
    return [np.flatnonzero(to_first), np.flatnonzero(~to_first)]


def _rounds(
    make: Callable[[], nn.Module],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    x: np.ndarray,
    y: np.ndarray,
    rounds: int,
    steps: int,
    batch: int,
) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Yield (round, client, update by layer) of federated averaging."""
    with torch_scope(0, "student"):
        replicas = [make() for _ in range(CLIENTS)]
    shared = {name: p.detach().clone() for name, p in replicas[0].named_parameters()}
    optimizers = [optimizer(list(replica.parameters())) for replica in replicas]
    halves = _skewed_halves(y)
    for round_index in range(rounds):
        updates = []
        for client, (model, step) in enumerate(zip(replicas, optimizers, strict=True)):
            model.load_state_dict(shared)
            rng = generator(0, "batches", round_index, client)
            for _ in range(steps):
                index = rng.choice(halves[client], batch, replace=False)
                output = model(torch.from_numpy(x[index]))
                loss = F.cross_entropy(getattr(output, "logits", output), torch.from_numpy(y[index]))
                step.zero_grad()
                loss.backward()
                step.step()
            updates.append({name: p.detach() - shared[name] for name, p in model.named_parameters()})
            print(f"  round {round_index} client {client} loss {loss.item():.3f}", flush=True)
            yield round_index, client, updates[-1]
        for name, tensor in shared.items():
            tensor.add_(sum(update[name] for update in updates) / CLIENTS)


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.02, momentum=0.9)


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-4, fused=True)


def fashion_cnn(root: Path) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Record the student of configs/fashion_mnist.yaml, with one epoch of 1500 samples per client and round."""
    options = {"channels": [8, 16], "kernel_size": 5, "hidden": [128]}
    x, y = _images("fashion_mnist", root)
    return _rounds(lambda: models.build("cnn", (1, 28, 28), 10, options), _sgd, x, y, 12, 47, 32)


def cifar_resnet(root: Path) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Record a ResNet-18 of half the usual width (2.8 million parameters, largest matrix 256 x 2304)."""
    x, y = _images("cifar10", root)
    return _rounds(lambda: models.build("resnet", (3, 32, 32), 10, {"depth": 18, "width": 32}), _sgd, x, y, 8, 16, 32)


def text_bert(root: Path) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Record two layers and the embedding of the 4-layer student on the ADE corpus, with 8 steps of persistent Adam."""
    tokens, labels = _sentences(root)
    for round_index, client, update in _rounds(Bert, _adam, tokens, labels, 16, 8, 16):
        skipped = tuple(f"blocks.{layer}." for layer in range(1, DEPTH - 1))
        yield round_index, client, {name: t for name, t in update.items() if not name.startswith(skipped)}


RECORDINGS = {"fashion_cnn": fashion_cnn, "cifar_resnet": cifar_resnet, "text_bert": text_bert}


def main(names: list[str]) -> None:
    """Record the named students (default all)."""
    root = Path(os.environ["FEDKD_DATA"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or list(RECORDINGS):
        print(name)
        kept = [(r, c, {k: t.clone() for k, t in update.items()}) for r, c, update in _last(RECORDINGS[name](root))]
        arrays = {f"{c}/{r}/{layer}": t.numpy() for r, c, update in kept for layer, t in update.items()}
        save: Callable[..., None] = np.savez  # numpy 1.26 takes allow_pickle for the name of an array
        save(FOLDER / f"{name}.npz", **arrays)


def _last(rounds: Iterator[tuple[int, int, dict[str, Tensor]]]) -> list[tuple[int, int, dict[str, Tensor]]]:
    kept: list[tuple[int, int, dict[str, Tensor]]] = []
    for item in rounds:
        kept = [*kept, item][-RECORDED * CLIENTS :]
    return kept


if __name__ == "__main__":
    main(sys.argv[1:])
