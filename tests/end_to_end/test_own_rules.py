"""docs/own-methods.md: its files are run by its commands, and do what their papers say."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import Command
from mpirun import REPOSITORY, mpirun
from sessions import SMALL, assert_same_run
from simulate import play

from fedkd_mpi import costlog
from fedkd_mpi.errors import RunFault

PAGE = (REPOSITORY / "docs/own-methods.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"```python\n# (my_rules/\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [shlex.split(text.replace("\\\n", " ")) for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)]
RULES = ["server.aggregator=my_rules.median:median", "sampler=my_rules.by_size:by_size"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files in a folder on the path."""
    (tmp_path / "my_rules").mkdir()
    for name, text in PARTS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_rules", "more_rules")]:
        del sys.modules[name]


def more(own: Path, text: str) -> None:
    (own / "more_rules.py").write_text(text)


@pytest.mark.parametrize("words", COMMANDS, ids=["fednova", "ditto", "lion", "rules"])
def test_the_commands_of_the_page_learn(command: Command, own: Path, words: list[str]):
    assert words[:4] == ["PYTHONPATH=.", "python", "-m", "fedkd_mpi.run"]
    code, out, err = command(*words[4:], "--output", "own.h5")
    assert (code, err) == (0, "")
    rounds = costlog.read("own.h5")["rounds"]
    assert rounds["global_student_accuracy"][-1] > 1.3 * rounds["global_student_accuracy"][0]
    if "evaluate.metrics" in " ".join(words):
        assert "global student, global test set: top3" in out
        assert (rounds["global_student_top3"] >= rounds["global_student_accuracy"]).all()
        samples = costlog.read("own.h5")["clients"]["train_samples"]
        assert samples.argmax() == 0
        assert samples.sum() > 3 * np.sort(samples)[:3].sum()  # half of the clients hold less than a third
        np.testing.assert_array_equal(rounds["threshold"], [0.95] * 3 + [0.98] * 3)


def test_fednova_with_equal_steps_is_fedavg(own: Path):
    """All clients take the effective number of steps without momentum: the division changes nothing."""
    how = ["optimizer.momentum=0", "compression.codec=none", "local={steps: 4, batch_size: 16}", "num_clients=4"]
    nova, _ = play(*how, "method={name: my_rules.fednova:FedNova, effective_steps: 4}")
    plain, _ = play(*how, "method=fedavg")
    np.testing.assert_allclose(nova.exchange.replica.numpy(), plain.exchange.replica.numpy(), atol=1e-6)


def test_dittos_pull_holds_the_personal_network_at_the_global_student(own: Path):
    """Against the same runs without a pull, the personal networks end nearer to the global student."""
    how = ["compression.codec=none", "num_clients=3", "rounds=3"]
    distances = []
    for pull in (0, 5):
        run, _ = play(*how, f"method={{name: my_rules.ditto:Ditto, pull: {pull}}}")
        size = run.exchange.student.trainable.numel()
        own_networks = [client.tensors["private"][:size] for client in run.clients.values()]
        distances.append(sum(float((mine - run.exchange.replica[:size]).norm()) for mine in own_networks))
    assert distances[1] < 0.5 * distances[0]


def test_the_aggregate_is_numpys_median_of_what_clients_send(own: Path):
    body = "    seen.append((updates, weights))\n    return updates.median(0).values\n"
    more(own, f"seen = []\ndef keep(updates, weights):\n{body}")
    how = ["compression.codec=none", "num_clients=3", "rounds=1", "server.weighting=samples"]
    run, log = play(*how, "server.aggregator=more_rules:keep")
    ((updates, weights),) = sys.modules["more_rules"].seen
    samples = log["clients"]["train_samples"]
    np.testing.assert_allclose(weights.numpy(), samples / samples.sum(), rtol=1e-6)
    start, _ = play(*how, "server.learning_rate=1e-30")  # the student as it began
    both = (run.exchange.student.views(each.exchange.replica) for each in (run, start))
    moved = [after - before for after, before in zip(*both, strict=True)]
    flat = np.concatenate([part.reshape(-1).numpy() for part in moved])
    np.testing.assert_allclose(flat, np.median(updates.numpy(), axis=0), atol=1e-6)


def test_rules_give_the_same_bits_on_any_number_of_processes(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(own), prepend=":")
    for n in (1, 3):
        done = mpirun(n, "-m", "fedkd_mpi.run", *SMALL, *RULES, "rounds=2", "--output", own / f"{n}.h5", timeout=120)
        assert done.returncode == 0, done.stderr
    assert_same_run(own / "1.h5", own / "3.h5")


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("def f(rng, round_index, samples, size): return [0, 0, 1]", "sampler", "returned [0, 0, 1] for round 1"),
        ("def f(rng, round_index, samples, size): return [4, 5, 6]", "sampler", "3 different clients from 0 to 4"),
        ("def f(rng, round_index, samples, size): return None", "sampler", "returned None"),
        ("def f(rng, round_index, samples, size): return 1 / 0", "sampler", "ZeroDivisionError: "),
        ("def f(samples): pass", "sampler", "function whose parameters begin rng"),
        ("def f(updates, weights): return updates", "server.aggregator", "returned torch.float32 ["),
        ("def f(updates, weights): return 3", "server.aggregator", "returned int"),
        ("def f(updates, weights): return updates @ weights", "server.aggregator", "more_rules.py, line 1"),
        ("def f(round_index, rounds, t_start, t_end): return 1.5", "compression.schedule", "T in (0, 1]"),
        ("def f(round_index, rounds, t_start, t_end): return 'x'", "compression.schedule", "returned x"),
        ("def f(labels, num_clients, rng, **keys): return labels * 0", "partition", "leaves client 1 with 0 samples"),
        ("def f(labels, num_clients, rng, **keys): return 'a'", "partition", "must give each of the"),
        ("def f(labels, num_clients, rng, **keys): return keys['x']", "partition", "KeyError: "),
        ("class f:\n def score(s, o, b): pass\n def finish(s, x): pass", "evaluate.metrics", "f has no metrics"),
        (
            "class f:\n metrics, sums = 'ab', 1\n def score(s, o, b): return [1]\n def finish(s, x): return {'a': 1}",
            *("evaluate.metrics", "more_rules:f: finish() returns no b, which `metrics` declares; it returns a"),
        ),
        (
            "class f:\n metrics, sums = ('a',), 1\n def score(s, o, b): return [1]\n def finish(s, x): return 1",
            *("evaluate.metrics", "finish() must return a mapping of names and numbers, not int"),
        ),
        (
            "class f:\n metrics, sums = ('a',), 2\n def score(s, o, b): return [1]\n def finish(s, x): return {'a': 1}",
            *("evaluate.metrics", "score() returns [3] numbers together, but `sums` is 4"),
        ),
    ],
)
def test_rules_that_return_what_they_must_not_are_named(command: Command, own: Path, text: str, key: str, says: str):
    more(own, text)
    value = '["more_rules:f"]' if key == "evaluate.metrics" else "more_rules:f"
    if key == "partition":
        value = "{kind: more_rules:f}"
    words = "num_clients=5", "cohort_size=3", f"{key}={value}"
    if key == "server.aggregator":  # which is called where updates are
        with pytest.raises(RunFault) as fault:
            command(*words)
        assert says in str(fault.value)
        return
    code, _, err = command(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("effective_step: 3", "unknown key method.effective_step; did you mean method.effective_steps?"),
        ("effective_steps: 0", "method.effective_steps=0: must be greater than 0"),
        ("effective_steps: many", "method.effective_steps=many: must be a number"),
    ],
)
def test_options_of_a_method_are_checked(command: Command, own: Path, options: str, says: str):
    code, _, err = command(f"method={{name: my_rules.fednova:FedNova, {options}}}")
    assert (code, err.count("\n")) == (2, 1)
    assert says in err


def test_options_of_a_codec_reach_it_and_no_other(command: Command, own: Path):
    more(
        own,
        "from fedkd_mpi.codecs.none import Raw\nclass Codec(Raw):\n    def __init__(self, compression, layers):\n"
        "        super().__init__(compression, layers)\n        print('level', compression.options['level'])\n",
    )
    code, out, err = command("compression.codec=more_rules:Codec", "compression.level=3", "rounds=1")
    assert (code, err) == (0, "")
    assert "level 3" in out
    code, _, err = command("compression.codec=svd", "compression.level=3")
    assert (code, err.count("\n")) == (2, 1)
    assert "compression.level" in err
