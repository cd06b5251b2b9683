"""Scores over clients against plain loops: means of a cohort, weighted ones, of all clients' latest, and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulate import play
from sklearn.metrics import precision_recall_fscore_support

from fedkd_mpi.simulation.client_scores import ClientScores
from fedkd_mpi.tasks.reading import precision_recall_f1


class Share:
    """Right answers among those seen."""

    metrics, sums = ("accuracy",), 2

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        return {"accuracy": sums[0] / sums[1] if sums[1] else math.nan}


def test_means_are_those_of_plain_loops_and_resume_where_they_were():
    rng, samples = np.random.default_rng(0), [3, 5, 0, 9]
    scores, latest = ClientScores(Share(), samples), {}
    trainings = {"round": [], "client": [], "teacher_accuracy": [], "student_accuracy": []}
    for index in range(12):
        cohort, evaluated = sorted(rng.permutation(4)[:2].tolist()), index % 3 > 0
        seen = np.array([samples[client] for client in cohort]) * evaluated
        right = np.array([rng.integers(0, n + 1) for n in seen])
        sums = {role: np.column_stack([right, seen]).astype(float) for role in ("teacher", "student")}
        found = scores.of_round(cohort, sums, evaluated)
        own = {client: r / n for client, r, n in zip(cohort, right, seen, strict=True) if n}
        latest |= own
        for role in ("teacher", "student"):
            everyone = [latest[client] for client in (0, 1, 3)] if evaluated and len(latest) == 3 else [math.nan]
            np.testing.assert_allclose(found[f"{role}_accuracy"], np.mean(list(own.values()) or [math.nan]))
            np.testing.assert_allclose(
                found[f"{role}_accuracy_weighted"], right.sum() / seen.sum() if seen.any() else np.nan
            )
            np.testing.assert_allclose(found[f"{role}_accuracy_all"], np.mean(everyone))
        for place, client in enumerate(cohort):
            trainings["round"].append(index)
            trainings["client"].append(client)
            for role in ("teacher", "student"):
                trainings[f"{role}_accuracy"].append(right[place] / seen[place] if seen[place] else math.nan)
    again = ClientScores(Share(), samples)
    again.recall({name: np.array(values) for name, values in trainings.items()}, [i % 3 > 0 for i in range(12)])
    sums = {role: np.array([[1.0, 3.0]]) for role in ("teacher", "student")}
    np.testing.assert_equal(again.of_round([0], sums, True), scores.of_round([0], sums, True))


def test_a_network_that_gives_nan_makes_every_mean_nan_that_it_belongs_to():
    scores = ClientScores(Share(), [4, 4])
    sums = {"teacher": np.array([[2.0, 4.0], [np.nan, np.nan]]), "student": np.array([[2.0, 4.0], [1.0, 4.0]])}
    found = scores.of_round([0, 1], sums, True)
    assert all(math.isnan(found[f"teacher_accuracy{suffix}"]) for suffix in ("", "_weighted", "_all"))
    assert found["student_accuracy"] == found["student_accuracy_all"] == 0.375


def test_nan_logits_score_nan_and_leave_an_event():
    _, log = play("num_clients=2", "rounds=1", "student={name: odd_models:NanInEvaluation, learning_rate: 0.1}")
    rounds, events = log["rounds"], log["events"]
    assert np.isnan([rounds[f"{name}_accuracy"][0] for name in ("global_student", "student")]).all()
    assert rounds["teacher_accuracy"][0] > 0
    assert sorted(events["client"].tolist()) == [-1, 0, 1]
    assert all("logits are NaN" in text for text in events["message"])


@pytest.mark.parametrize("truth", [[1, 0, 1], [0, 0, 0], [1, 1, 1]])
@pytest.mark.parametrize("guess", [[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
def test_precision_recall_and_f1_are_scikit_learns(truth: list[int], guess: list[int]):
    right = sum(t and g for t, g in zip(truth, guess, strict=True))
    found = precision_recall_f1(right, sum(guess), sum(truth))
    if not sum(guess) + sum(truth):
        assert all(math.isnan(value) for value in found.values())
        return
    expected = precision_recall_fscore_support(truth, guess, average="binary", zero_division=0)
    np.testing.assert_allclose([found["precision"], found["recall"], found["f1"]], expected[:3])
