"""Every partition gives each sample to one client, the same way for the same stream, or says what is feasible."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd_mpi.datasets.partition import partition, split
from fedkd_mpi.errors import UserError

labels_arrays = st.lists(st.integers(0, 9), min_size=1, max_size=300).map(np.array)
seeds = st.integers(0, 2**32)
few = settings(max_examples=60, deadline=None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def balanced(per_class: int, classes: int = 10) -> np.ndarray:
    return np.repeat(np.arange(classes), per_class)


def assert_divides(parts: list[np.ndarray], labels: np.ndarray, num_clients: int, min_samples: int = 1) -> None:
    assert len(parts) == num_clients
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert min(map(len, parts)) >= min_samples


def assert_divides_or_names_what_works(labels: np.ndarray, options: dict[str, float], seed: int) -> None:
    try:
        parts = partition("dirichlet", labels, rng=rng(seed), **options)
    except UserError as error:
        suggestions = re.findall(r"(?:partition\.)?(\w+)=([\d.e+]+)", str(error).split("feasible here: ")[1])
        assert suggestions
        for key, value in suggestions:
            changed = options | {key: float(value) if key == "alpha" else int(value)}
            assert changed != options
            parts = partition("dirichlet", labels, rng=rng(seed), **changed)
            assert_divides(parts, labels, changed["num_clients"], changed["min_samples"])
    else:
        assert_divides(parts, labels, options["num_clients"], options["min_samples"])


@few
@given(labels_arrays, st.integers(1, 40), seeds)
def test_iid_sizes_differ_by_one_at_most(labels, num_clients, seed):
    num_clients = min(num_clients, len(labels))
    parts = partition("iid", labels, num_clients, rng(seed))
    assert_divides(parts, labels, num_clients)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@few
@given(labels_arrays, st.integers(1, 12), st.floats(1e-300, 1.7e308), st.integers(1, 5), seeds)
def test_dirichlet_divides_all_samples_or_names_what_works(labels, num_clients, alpha, min_samples, seed):
    num_clients = min(num_clients, len(labels))
    min_samples = min(min_samples, len(labels) // num_clients)
    options = {"num_clients": num_clients, "alpha": alpha, "min_samples": min_samples}
    assert_divides_or_names_what_works(labels, options, seed)


@few
@given(labels_arrays, st.integers(1, 30), st.integers(1, 10), seeds)
def test_pathological_gives_each_client_exactly_its_classes(labels, num_clients, classes_per_client, seed):
    num_clients = min(num_clients, len(labels))
    sizes = np.unique(labels, return_counts=True)[1]
    most = np.minimum(sizes, num_clients).sum()
    feasible = len(sizes) <= num_clients * classes_per_client <= most
    try:
        parts = partition("pathological", labels, num_clients, rng(seed), classes_per_client=classes_per_client)
    except UserError:
        assert not feasible
    else:
        assert feasible
        assert_divides(parts, labels, num_clients)
        assert {len(np.unique(labels[part])) for part in parts} == {classes_per_client}


@few
@given(st.lists(st.integers(-5, 50), min_size=1, max_size=200).map(np.array), st.integers(1, 30))
def test_natural_keeps_groups_whole_and_in_order(groups, num_clients):
    names = np.unique(groups)
    num_clients = min(num_clients, len(names))
    parts = partition("natural", np.zeros_like(groups), num_clients, rng(), groups=groups)
    assert_divides(parts, groups, num_clients)
    held = [np.unique(groups[part]).tolist() for part in parts]
    assert [name for block in held for name in block] == names.tolist()
    counts = [len(block) for block in held]
    assert max(counts) - min(counts) <= 1


@few
@given(labels_arrays, st.floats(0.01, 0.99), seeds)
def test_split_is_stratified_and_leaves_something_to_train_on(labels, fraction, seed):
    indices = rng(seed).permutation(len(labels))[: max(1, len(labels) // 2)]
    train, test = split(indices, labels, fraction, rng(seed))
    assert sorted([*train, *test]) == sorted(indices)
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(test) > 0)
    assert len(train) >= 1
    if len(indices) > 1:
        assert len(test) >= 1
        assert abs(len(test) - fraction * len(indices)) <= 1
    for label in np.unique(labels[indices]):
        share = np.sum(labels[indices] == label) * len(test) / len(indices)
        assert abs(np.sum(labels[test] == label) - share) < 1


def test_split_chooses_each_sample_equally_often():
    labels = balanced(3, classes=4)
    times = np.zeros(12)
    for seed in range(2000):
        times[split(np.arange(12), labels, 0.25, rng(seed))[1]] += 1
    # 2000 draws of probability 1/4 have a standard deviation of 19.4.
    assert np.all(np.abs(times - 500) < 5 * 19.4)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction_outside_0_1(fraction):
    with pytest.raises(UserError, match="test_fraction"):
        split(np.arange(4), np.zeros(4), fraction, rng())


KINDS = [
    ("iid", {}),
    ("dirichlet", {"alpha": 0.5}),
    ("pathological", {"classes_per_client": 3}),
    ("natural", {"groups": np.arange(600) % 7}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_same_stream_same_partition(kind, options):
    labels = balanced(60)
    first, again, other = (partition(kind, labels, 7, rng(seed), **options) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    same = all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert same == (kind == "natural")


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_more_clients_than_samples_is_refused(kind, options):
    with pytest.raises(
        UserError, match=r"num_clients=601 .* needs 601 samples, but there are 600: at most 600 clients"
    ):
        partition(kind, balanced(60), 601, rng(), **options)


def test_minimum_times_clients_beyond_the_samples_is_refused():
    with pytest.raises(UserError, match=r"needs 700 samples, but there are 600: at most 60 clients"):
        partition("iid", balanced(60), 70, rng(), min_samples=10)


def test_dirichlet_tends_to_one_owner_a_class_and_to_equal_shares():
    labels = balanced(50)
    one_owner = partition("dirichlet", labels, 2, rng(3), alpha=5e-324)
    assert sum(len(np.unique(labels[part])) for part in one_owner) == 10
    equal = partition("dirichlet", labels, 5, rng(3), alpha=1.7e308)
    assert all(np.bincount(labels[part]).tolist() == [10] * 10 for part in equal)


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    # A share of a symmetric Dirichlet of K parts has mean 1/K and variance (K-1) / (K^2 (K alpha + 1)).
    alpha, clients, per_class, classes = 0.5, 4, 1000, 500
    parts = partition("dirichlet", balanced(per_class, classes), clients, rng(5), alpha=alpha)
    shares = np.stack([np.bincount(part // per_class, minlength=classes) for part in parts]) / per_class
    assert shares.mean(axis=1) == pytest.approx([1 / clients] * clients, abs=0.05)
    assert shares.var() == pytest.approx((clients - 1) / (clients**2 * (clients * alpha + 1)), rel=0.1)


def test_what_dirichlet_names_works_even_where_luck_is_needed():
    # Six classes of one owner each fall on six clients in 1.5 % of draws: only the very same draws are sure to fit.
    for seed in range(60):
        options = {"num_clients": 12, "alpha": 1e-9, "min_samples": 2}
        assert_divides_or_names_what_works(balanced(4, classes=6), options, seed)


def test_dirichlet_error_names_values_that_work():
    with pytest.raises(
        UserError,
        match=r"alpha=0.01 .*num_clients=30 .*min_samples=5 of 600.*100 draws.*alpha=[\d.]+ or num_clients=\d+",
    ):
        partition("dirichlet", balanced(60), 30, rng(), alpha=0.01, min_samples=5)


@pytest.mark.parametrize("alpha", [None, 0, -1.0, float("inf"), float("nan")])
def test_dirichlet_refuses_a_senseless_alpha(alpha):
    with pytest.raises(UserError, match=r"partition\.alpha=.*positive"):
        partition("dirichlet", balanced(6), 3, rng(), alpha=alpha)


@pytest.mark.parametrize(
    ("num_clients", "classes_per_client", "feasible"),
    [(4, 11, "feasible: 3..10"), (4, 2, "feasible: 3..10"), (32, None, "feasible: 1..10"), (4, 0, "feasible: 3..10")],
)
def test_pathological_error_names_the_feasible_range(num_clients, classes_per_client, feasible):
    with pytest.raises(UserError, match=re.escape(feasible)):
        partition("pathological", balanced(60), num_clients, rng(), classes_per_client=classes_per_client)


def test_pathological_says_when_no_number_of_classes_works():
    with pytest.raises(UserError, match="change num_clients"):
        partition("pathological", np.arange(3), 2, rng(), classes_per_client=1)


def test_pathological_shards_follow_the_size_of_classes():
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    parts = partition("pathological", labels, 20, rng(), classes_per_client=1)
    assert max(map(len, parts)) <= 3 * min(map(len, parts))


def test_pathological_mixes_classes_freely():
    labels = balanced(100)
    parts = partition("pathological", labels, 100, rng(), classes_per_client=2)
    assert len({tuple(np.unique(labels[part])) for part in parts}) > 30


def test_natural_needs_groups_and_enough_of_them():
    with pytest.raises(UserError, match="this data set has none"):
        partition("natural", balanced(6), 3, rng())
    with pytest.raises(UserError, match=r"num_clients=5 .* 3 groups; set num_clients to 3"):
        partition("natural", balanced(6), 5, rng(), groups=balanced(6) % 3)


def test_too_small_a_group_is_named():
    with pytest.raises(UserError, match=r"client 1 with 2 samples, fewer than partition.min_samples=3: set that to"):
        partition("natural", np.zeros(10), 2, rng(), groups=np.repeat([4, 9], [8, 2]), min_samples=3)


def test_several_labels_a_sample_are_refused_where_classes_are_divided():
    with pytest.raises(UserError, match="one class per sample"):
        partition("dirichlet", np.zeros((6, 2)), 2, rng(), alpha=1.0)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match=r"partition.kind=dirchlet .*dirichlet"):
        partition("dirchlet", balanced(6), 2, rng())


def test_own_partitioner_by_dotted_path():
    parts = partition("own_data:halves", balanced(1), 2, rng())
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(UserError, match="each of the 10 samples a client below 1"):
        partition("own_data:halves", balanced(1), 1, rng())


def test_documents_stay_whole_in_a_clients_own_split():
    documents = np.repeat(np.arange(20), 5)
    indices = np.arange(10, 90)
    for seed in range(5):
        train, test = split(indices, np.zeros(100, int), 0.2, np.random.default_rng(seed), documents)
        assert sorted([*train, *test]) == indices.tolist()
        assert set(documents[train]).isdisjoint(documents[test])
        assert 16 <= len(test) <= 20
    with pytest.raises(UserError, match="of one document"):
        split(np.arange(3), np.zeros(100, int), 0.2, np.random.default_rng(0), documents)
