"""Networks that leave a log: each family's score is found again from the exported file by plain PyTorch code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Command, assert_refused
from encoder_folders import write as write_encoder
from phantoms import write_patients
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from text_data import write_ade, write_cadec, write_mind
from torch import Tensor
from torch.nn import functional

import fedkd_mpi
from fedkd_mpi import costlog, datasets, export
from fedkd_mpi.config.sections import DataConfig
from fedkd_mpi.run import main

Weights = dict[str, Tensor]
DIGITS = ["num_clients=3", "rounds=3", "local.epochs=2", "device=cpu", "evaluate.global_teachers=true", "name=exported"]
MLPS = ["teacher.hidden=[24]", "student.hidden=[16]"]
CNN = "teacher={name: cnn, channels: [4, 6], kernel_size: 3, padding: 1, hidden: [8], norm: batch, learning_rate: 0.1}"
RESNET = "student={name: resnet, depth: 8, width: 4, norm: batch, learning_rate: 0.1}"


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.excepthook", None)  # which the command replaces


def play(log: Path, *overrides: str) -> Path:
    assert main([*overrides, "--output", str(log)]) == 0
    return log


def exported(log: Path, target: Path, *which: str) -> Weights:
    assert export.main([str(log), *which, "--to", str(target)]) == 0
    return load_file(target)


def digits() -> tuple[Tensor, np.ndarray]:
    """The test set as a user would prepare it with what the card says."""
    data = datasets.load("digits", None, 0)
    return torch.tensor(data.test["x"]).float(), data.test["y"]


def card_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fedkd_mpi"])


def normalised(path: Path) -> Tensor:
    told = card_of(path)["inputs"]
    return (digits()[0] * told["scale"] - told["mean"][0]) / told["std"][0]


def accuracy(logits: Tensor) -> float:
    return float((logits.argmax(1).numpy() == digits()[1]).mean())


def mlp(w: Weights, x: Tensor) -> Tensor:
    x = torch.relu(x.flatten(1) @ w["layers.0.weight"].T + w["layers.0.bias"])
    return x @ w["head.weight"].T + w["head.bias"]


def batch_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, var, scale, shift = (
        w[f"{name}.{part}"].view(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift


def cnn(w: Weights, x: Tensor) -> Tensor:
    for stage in range(2):
        x = functional.conv2d(x, w[f"convs.{stage}.weight"], padding=1)
        x = torch.relu(functional.max_pool2d(batch_norm(w, f"norms.{stage}", x), 2))
    x = torch.relu(x.flatten(1) @ w["layers.0.weight"].T + w["layers.0.bias"])
    return x @ w["head.weight"].T + w["head.bias"]


def resnet8(w: Weights, x: Tensor) -> Tensor:
    x = torch.relu(batch_norm(w, "norm", functional.conv2d(x, w["stem.weight"], padding=1)))
    for stage in range(3):
        block = f"stages.{stage}.0"
        y = functional.conv2d(x, w[f"{block}.conv1.weight"], stride=2 if stage else 1, padding=1)
        y = torch.relu(batch_norm(w, f"{block}.norm1", y))
        y = batch_norm(w, f"{block}.norm2", functional.conv2d(y, w[f"{block}.conv2.weight"], padding=1))
        if stage:
            half = x[:, :, ::2, ::2]
            side = torch.zeros(len(x), half.shape[1] // 2, *half.shape[2:])
            x = torch.cat([side, half, side], 1)
        x = torch.relu(x + y)
    return x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose T does not change: it can be extended."""
    return play(tmp_path_factory.mktemp("mlps") / "run.h5", *DIGITS, *MLPS, "compression.t_end=0.95")


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("convolutions") / "run.h5", *DIGITS, CNN, RESNET, "checkpoint.every=null")


@pytest.mark.parametrize(
    ("run", "student", "teacher"), [("mlps", mlp, mlp), ("convolutions", resnet8, cnn)], ids=("mlp", "cnn and resnet")
)
def test_pictures_score_as_the_log_says(
    run: str,
    student: Callable[[Weights, Tensor], Tensor],
    teacher: Callable[[Weights, Tensor], Tensor],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    log = request.getfixturevalue(run)
    rounds = costlog.read(log)["rounds"]
    file = tmp_path / "student.safetensors"
    logits = student(exported(log, file), normalised(file))
    assert accuracy(logits) == pytest.approx(rounds["global_student_accuracy"][-1], abs=1e-9)
    assert accuracy(logits) > 0.2  # more than chance, which a wrong layout would be
    scores = []
    for client in range(3):
        file = tmp_path / f"teacher{client}.safetensors"
        scores.append(accuracy(teacher(exported(log, file, "--client", str(client)), normalised(file))))
    assert np.mean(scores) == pytest.approx(rounds["global_teacher_accuracy"][-1], abs=1e-9)
    module = fedkd_mpi.load_student(log)
    assert not module.training
    raw = datasets.load("digits", None, 0).test["x"]
    torch.testing.assert_close(module(module.preprocess(raw)).logits, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(module(module.preprocess(raw[0])).logits, logits[:1], atol=1e-4, rtol=1e-4)


def test_the_card_says_what_a_stranger_needs(mlps: Path, tmp_path: Path) -> None:
    exported(mlps, file := tmp_path / "teacher.safetensors", "--client", "1")
    card, attrs = card_of(file), costlog.read(mlps)["attrs"]
    assert card["network"] == {"name": "mlp", "hidden": [24], "activation": "relu"}
    assert (card["role"], card["round"], card["classes"]) == ("teacher of client 1", 3, [str(n) for n in range(10)])
    assert card["config_digest"] == attrs["config_digest"]
    training = costlog.read(mlps)["training"]
    own = training["teacher_accuracy"][training["client"] == 1][-1]
    assert card["scores"] == {"accuracy, the client's own test samples": own}
    program = (tmp_path / "teacher.safetensors.md").read_text().split("```python")[1].split("```")[0]
    inputs = normalised(file)
    room: dict[str, Any] = {"pixels": digits()[0]}
    exec(program.replace('"teacher.safetensors"', f"{str(file)!r}"), room)
    torch.testing.assert_close(room["logits"], mlp(load_file(file), inputs))


def test_the_best_round_is_kept_and_survives_a_stop(tmp_path: Path) -> None:
    """A learning rate far too high makes scores that go up and down."""
    wild = [*DIGITS, *MLPS, "rounds=8", "student.learning_rate=1.5", "checkpoint.best=all", "local.epochs=1"]
    log = play(tmp_path / "whole.h5", *wild)
    scores = costlog.read(log)["rounds"]["global_student_accuracy"]
    best = int(scores.argmax())
    stopped = tmp_path / "stopped.h5"
    assert main([*wild, "time_limit=0.001", "--output", str(stopped)]) == 75
    assert main(["--resume", str(stopped), "time_limit=null"]) == 0
    for path in (log, stopped):
        weights = exported(path, file := path.with_suffix(".safetensors"), "--round", "best")
        assert card_of(file)["round"] == best + 1
        assert accuracy(mlp(weights, normalised(file))) == pytest.approx(scores[best], abs=1e-9)
        assert [folder.name for folder in path.parent.glob(f"{path.name}.checkpoints/best-*")] == [
            f"best-{best + 1:06d}"
        ]
        exported(path, path.with_name(f"{path.name}-t.safetensors"), "--round", "best", "--client", "2")


def test_a_checkpoint_can_be_read_by_its_manifest_alone(convolutions: Path, tmp_path: Path) -> None:
    folder = next((convolutions.parent / f"{convolutions.name}.checkpoints").glob("round-*"))
    described = json.loads((folder / "manifest.json").read_text())["networks"]["student"]
    replica = load_file(folder / "server.safetensors")["replica"]
    weights = exported(convolutions, tmp_path / "s.safetensors")
    for layer in described["layers"]:
        tensor = torch.as_strided(replica, layer["shape"], layer["strides"], layer["offset"])
        assert torch.equal(tensor, weights[layer["names"][0]])


def test_a_run_starts_from_an_export(mlps: Path, tmp_path: Path, in_process: Command) -> None:
    student, teacher = tmp_path / "student.safetensors", tmp_path / "teacher.safetensors"
    exported(mlps, student)
    exported(mlps, teacher, "--client", "0")
    start = [*DIGITS, *MLPS, "rounds=1", f"init.student={student}", f"init.teacher={teacher}"]
    still = ["student.learning_rate=1e-30", "teacher.learning_rate=1e-30", "compression.codec=none"]
    log = play(tmp_path / "on.h5", *start, *still)
    rounds = costlog.read(log)["rounds"]
    assert rounds["global_student_accuracy"][0] == costlog.read(mlps)["rounds"]["global_student_accuracy"][-1]
    again = exported(log, tmp_path / "again.safetensors", "--client", "2")
    assert all(torch.equal(again[name], tensor) for name, tensor in load_file(teacher).items())
    digest = costlog.read(log)["attrs"]["config_digest"]
    weights = load_file(student)
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, student)
    assert costlog.read(play(tmp_path / "other.h5", *start, *still))["attrs"]["config_digest"] != digest
    arguments = [*start, "--output", tmp_path / "no.h5"]
    save_file({**weights, "head.bias": torch.zeros(9)}, student)
    assert_refused(in_process(main, *arguments), "head.bias is float32 [9], the network's is float32 [10]")
    save_file({"head.weight": weights["head.weight"]}, student)
    assert_refused(in_process(main, *arguments), "lacks the tensor head.bias and 2 more")
    torch.save(weights, student)
    assert_refused(in_process(main, *arguments), "is no safetensors file")


def test_a_finished_run_is_extended_to_the_bits_of_a_longer_one(
    mlps: Path, tmp_path: Path, in_process: Command, convolutions: Path
) -> None:
    log = play(tmp_path / "short.h5", *DIGITS, *MLPS, "compression.t_end=0.95", "rounds=2")
    assert main(["--resume", str(log), "rounds=3"]) == 0
    short, whole = exported(log, tmp_path / "a.safetensors"), exported(mlps, tmp_path / "b.safetensors")
    assert all(torch.equal(short[name], tensor) for name, tensor in whole.items())
    one, other = costlog.read(log), costlog.read(mlps)
    assert one["attrs"]["config_digest"] == other["attrs"]["config_digest"]
    assert one["attrs"]["status"] == "completed"
    np.testing.assert_array_equal(one["uplink"]["bytes"], other["uplink"]["bytes"])
    assert_refused(in_process(main, "--resume", log, "rounds=2"), "only grows")
    why = "T rises over the rounds of a run, from compression.t_start=0.95 to t_end=0.98"
    assert_refused(in_process(main, "--resume", convolutions, "rounds=9"), why)


def test_what_is_not_there_is_said_in_a_line(mlps: Path, tmp_path: Path, in_process: Command) -> None:
    to = ("--to", tmp_path / "x.safetensors")
    for arguments, words in [
        ((mlps, "--round", "7", *to), "has no checkpoint 'after round 7'; kept in"),
        ((mlps, "--client", "3", *to), "has clients 0 to 2, no client 3"),
        ((mlps, "--client", "0", "--round", "best", *to), "client 0 was not kept (checkpoint.best=all)"),
        ((mlps, "--to", tmp_path / "x.pt"), "must end in .safetensors or .onnx"),
        ((mlps, "--to", tmp_path / "folder"), "is no encoder of texts"),
        ((mlps, "--to", mlps.with_suffix(".onnx"), "--round", "0"), "is not a whole number"),
    ]:
        code, out, err = in_process(export.main, *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert words in err
    nothing = "checkpoint={every: null, last: false, best: none}"
    none = play(tmp_path / "none.h5", *DIGITS, *MLPS, "rounds=1", "compression.t_end=0.95", nothing)
    assert_refused(in_process(export.main, none, *to), "checkpoints: none")
    assert_refused(
        in_process(main, "--resume", none, "rounds=2"), "is completed and has no checkpoint to continue from"
    )


def test_importing_the_package_stays_light() -> None:
    code = "import sys, fedkd_mpi; print(sorted({'torch', 'numpy', 'mpi4py', 'pydantic'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_onnx_gives_the_same_logits(convolutions: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    file = tmp_path / "student.onnx"
    assert export.main([str(convolutions), "--to", str(file)]) == 0
    weights = exported(convolutions, plain := tmp_path / "student.safetensors")
    x = normalised(plain)[:5]
    (logits,) = ReferenceEvaluator(onnx.load(file)).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.tensor(logits), resnet8(weights, x), atol=1e-4, rtol=1e-4)


BERT = "{name: bert, layers: %d, width: 12, heads: 2, learning_rate: 0.005}"
TEXTS = [
    *("partition={kind: natural, alpha: null}", "num_clients=2", "rounds=2", "device=cpu", "log.spectra=false"),
    *("optimizer={name: adam, momentum: 0.0, clip_norm: 1.0}", "local={epochs: 2, batch_size: 8}", "data.length=24"),
]


def of_texts(kind: str, root: Path) -> list[str]:
    if kind == "new":
        write_ade(root)
        models = [f"teacher={BERT % 2}", f"student={BERT % 1}", "data.vocabulary=250"]
        return [*models, "task=text_classification", "data.name=ade", f"data.root={root}", *TEXTS]
    if kind == "pretrained":
        write_ade(root)
        folder = write_encoder(root / "encoder", "roberta", max_position_embeddings=40)
        network = f"name: bert, path: {folder}, learning_rate: 0.005"
        models = [f"teacher={{{network}}}", f"student={{{network}, layers: 1}}", f"data.tokenizer={folder}"]
        return [*models, "task=text_classification", "data.name=ade", f"data.root={root}", *TEXTS]
    write_cadec(root)
    models = [f"teacher={BERT % 2}", f"student={BERT % 1}", "data.vocabulary=250"]
    longer = ["rounds=4", "local.epochs=8", "teacher.learning_rate=0.02", "student.learning_rate=0.02"]
    return [*models, "task=ner", "data.name=medical_ner", "data.corpora=[cadec]", f"data.root={root}", *TEXTS, *longer]


@pytest.mark.parametrize("kind", ["new", "pretrained", "tagger"])
def test_encoders_leave_as_folders_that_transformers_loads(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

    log = play(tmp_path / "run.h5", *of_texts(kind, tmp_path / "data"))
    folder = tmp_path / "student"
    assert export.main([str(log), "--to", str(folder)]) == 0
    module, rounds = fedkd_mpi.load_student(log), costlog.read(log)["rounds"]
    texts = ["Case 3: lithium caused neutropenia.", "Patient 1 took aspirin for pain"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], module.preprocess(texts))
    if kind == "tagger":
        tagger = AutoModelForTokenClassification.from_pretrained(folder).eval()
        assert set(tagger.config.id2label.values()) == {"O", "B-drug", "I-drug", "B-effect", "I-effect"}
        real = tokens["attention_mask"].bool()
        logits = module(module.preprocess(texts)).logits
        torch.testing.assert_close(tagger(**tokens).logits[real], logits[real], atol=1e-4, rtol=1e-4)
        data = datasets.load("medical_ner", tmp_path / "data", 0, loader_options(log))
        ids, tags = (torch.tensor(data.test[name]).long() for name in ("ids", "tags"))
        guessed = tagger(ids, attention_mask=(ids != 0).long()).logits.argmax(-1)
        found = f1(spans(guessed, tags), spans(tags, tags))
        assert found == pytest.approx(rounds["global_student_f1"][-1], abs=1e-9)
        assert found > 0.2
        return
    encoder, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "head.safetensors")
    data = datasets.load("ade", tmp_path / "data", 0, loader_options(log))
    ids, pad = torch.tensor(data.test["ids"]).long(), encoder.config.pad_token_id
    mask = (ids != pad).long()
    hidden = encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]
    logits = hidden.sum(1) / mask.sum(1, keepdim=True) @ head["out.weight"].T + head["out.bias"]
    right = (logits.argmax(1).numpy() == data.test["y"]).mean()
    assert right == pytest.approx(rounds["global_student_accuracy"][-1], abs=1e-9)


@pytest.mark.parametrize("kind", ["new", "pretrained", "tagger"])
def test_onnx_of_texts_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    log = play(tmp_path / "run.h5", *of_texts(kind, tmp_path / "data"), "rounds=1", "local.epochs=1")
    file = tmp_path / "student.onnx"
    assert export.main([str(log), "--to", str(file)]) == 0
    module = fedkd_mpi.load_student(log)
    running = ReferenceEvaluator(onnx.load(file))
    for texts in (["Case 3: lithium caused neutropenia.", "took aspirin", "pain"], ["Patient 1 took aspirin for pain"]):
        ids = module.preprocess(texts)  # of other numbers of texts and of tokens than the file was made with
        (logits,) = running.run(None, {"input": ids.numpy()})
        own = module(ids).logits.detach()
        real = ids != module.preprocess(["pain", texts[0]])[0, -1] if kind == "tagger" else slice(None)
        torch.testing.assert_close(torch.tensor(logits)[real], own[real], atol=1e-4, rtol=1e-4)


def test_a_ranking_of_news_is_no_onnx_file_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    write_mind(tmp_path / "data")
    models = [f"teacher={BERT % 2}", f"student={BERT % 1}", "data.vocabulary=250"]
    how = ["task=news", "data.name=mind_small", "data.history=4", f"data.root={tmp_path / 'data'}"]
    log = play(tmp_path / "run.h5", *models, *how, *TEXTS, "rounds=1")
    assert export.main([str(log), "--to", str(tmp_path / "x.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "task=news: a ranking of news takes three inputs, and is not made an ONNX file" in line
    assert not (tmp_path / "x.onnx").exists()


def loader_options(log: Path) -> dict[str, Any]:
    import yaml

    known = yaml.safe_load(costlog.read(log)["attrs"]["config"])["data"]
    return {key: value for key, value in known.items() if key not in DataConfig.model_fields}


def spans(tags: Tensor, true: Tensor) -> set[tuple[int, int, int, int]]:
    """(text, first word, the one after the last, kind) of BIO tags, read letter by letter."""
    found = set()
    for text, (row, real) in enumerate(zip(tags.tolist(), (true >= 0).tolist(), strict=True)):
        letters = [
            "O" if tag == 0 else f"{'BI'[(tag - 1) % 2]}{(tag - 1) // 2}"
            for tag, is_real in zip(row, real, strict=True)
            if is_real
        ]
        start = None
        for place, letter in enumerate([*letters, "O"]):
            if start is not None and letter != f"I{letters[start][1:]}":
                found.add((text, start, place, int(letters[start][1:])))
                start = None
            if start is None and letter != "O":
                start = place
    return found


def f1(guessed: set, there: set) -> float:
    total = len(guessed) + len(there)
    return 2 * len(guessed & there) / total if total else float("nan")


def test_the_denoiser_scores_as_the_log_says(tmp_path: Path) -> None:
    write_patients(tmp_path, {"L001": 4, "L002": 4, "L003": 2})
    network = "{name: redcnn, width: %d, depth: 3, kernel_size: 3, learning_rate: 0.005}"
    log = play(
        tmp_path / "ct.h5",
        *("--config", "benchmarks/ct.yaml", f"data.root={tmp_path}", "data.test_patients=[L003]", "data.photons=3e3"),
        *("data.patch=32", "data.angles=60", "num_clients=2", "rounds=2", "device=cpu", "local.steps=8"),
        *(f"teacher={network % 8}", f"student={network % 6}", "local.batch_size=8"),
    )
    file = tmp_path / "student.safetensors"
    w = exported(log, file)
    data = datasets.load("mayo_ct", tmp_path, 0, loader_options(log))
    low, high = card_of(file)["inputs"]["window"]
    x, y = (((torch.tensor(data.test[key]).float() - low) / (high - low)).clip(0, 1) for key in "xy")
    kept, hidden = [x], x
    for layer in range(3):
        hidden = torch.relu(functional.conv2d(hidden, w[f"encoder.{layer}.weight"], w[f"encoder.{layer}.bias"]))
        kept.append(hidden)
    for layer in (2, 1, 0):
        hidden = functional.conv_transpose2d(hidden, w[f"decoder.{layer}.weight"], w[f"decoder.{layer}.bias"])
        if layer % 2 == 0:
            hidden = hidden + kept[layer]
        if layer:
            hidden = torch.relu(hidden)
    error = ((hidden.clip(0, 1) - y).double() ** 2).mean((1, 2, 3))
    psnr = -10 * torch.log10(error)
    assert float(psnr.mean()) == pytest.approx(costlog.read(log)["rounds"]["global_student_psnr"][-1], abs=1e-3)


def test_the_commands_and_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import re
    import runpy
    import shlex

    from mpirun import REPOSITORY

    from fedkd_mpi import run

    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/export.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"(?s)```(bash|python)\n(.*?)```", page):
        if language == "python":
            (tmp_path / "program.py").write_text(block)
            runpy.run_path(str(tmp_path / "program.py"))
            continue
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            assert words[:2] == ["python", "-m"]
            assert {"fedkd_mpi.run": run, "fedkd_mpi.export": export}[words[2]].main(words[3:]) == 0
