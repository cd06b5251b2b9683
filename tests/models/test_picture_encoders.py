"""Networks of torchvision and transformers by `torchvision:NAME` and `hf:FOLDER`: heads, features, stems, runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_stand_in
from command import Command, assert_refused
from mpirun import run
from safetensors.torch import load_file, save_file
from torch import nn

import fedkd_mpi
from fedkd_mpi import costlog, models
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.export import main as export
from fedkd_mpi.models.options import called
from fedkd_mpi.run import main

needs_torchvision = pytest.mark.skipif(not torchvision_stand_in.available, reason=torchvision_stand_in.HOW)
# The smallest pictures that each takes, and how many numbers it has before its last layer.
FAMILIES = {
    "resnet18": (16, 512),
    "mobilenet_v3_small": (16, 1024),
    "efficientnet_b0": (16, 1280),
    "vgg11": (32, 4096),
    "densenet121": (32, 1024),
    "squeezenet1_1": (32, 512),
    "shufflenet_v2_x0_5": (16, 1024),
    "googlenet": (32, 1024),
    "inception_v3": (75, 2048),
    "convnext_tiny": (32, 768),
    "vit_b_16": (32, 768),
    "swin_t": (32, 768),
    "regnet_y_400mf": (16, 440),
    "mnasnet0_5": (16, 1280),
}


def build(model: str, side: int, channels: int = 1, classes: int = 5, **options: Any) -> nn.Module:
    return models.build("torchvision", (channels, side, side), classes, {"model": model, **options}, "teacher")


@needs_torchvision
@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES)
def test_a_network_of_each_family_has_our_head_and_learns(model: str):
    side, own = FAMILIES[model]
    network = build(model, side, width=24)
    assert network.hidden_sizes == (24,)
    assert network.projection.in_features == own
    x, y = torch.randn(2, 1, side, side), torch.tensor([0, 4])
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    output = network(x)
    assert (output.logits.shape, [hidden.shape for hidden in output.hidden]) == ((2, 5), [(2, 24)])
    assert torch.equal(output.logits, network.head(output.hidden[0]))
    nn.functional.cross_entropy(output.logits, y).backward()
    assert [name for name, tensor in network.named_parameters() if tensor.grad is None] == []
    before = [tensor.detach().clone() for tensor in network.parameters()]
    optimizer.step()
    assert any(not torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


@needs_torchvision
def test_features_are_the_input_of_torchvisions_last_layer(tmp_path: Path):
    from torchvision.models import shufflenet_v2_x0_5

    with torch_scope(0, "bare"):
        bare = shufflenet_v2_x0_5(num_classes=7).eval()
    save_file(bare.state_dict(), tmp_path / "weights.safetensors")
    network = build("shufflenet_v2_x0_5", 32, 3, width=None, weights=str(tmp_path / "weights.safetensors")).eval()
    x, seen = torch.randn(3, 3, 32, 32), []
    bare.fc.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    bare(x)
    assert torch.equal(network(x).hidden[0], seen[0])
    pool = build(
        "shufflenet_v2_x0_5", 32, 3, width=256, projection="pool", weights=str(tmp_path / "weights.safetensors")
    )
    torch.testing.assert_close(pool.eval()(x).hidden[0], seen[0].reshape(3, 256, 4).mean(2))
    assert not list(pool.projection.parameters())


@needs_torchvision
def test_a_small_stem_keeps_the_size_of_the_picture():
    sizes = {}
    for stem in ("standard", "small"):
        network = build("resnet18", 32, 3, stem=stem).eval()
        network.body.layer1.register_forward_hook(
            lambda _layer, _inputs, output, stem=stem: sizes.update({stem: output.shape[-1]})
        )
        network(torch.zeros(1, 3, 32, 32))
    assert sizes == {"standard": 8, "small": 32}
    assert network.body.conv1.weight.shape == (64, 3, 3, 3)


@needs_torchvision
def test_attention_maps_are_those_of_softmax():
    network = build("vit_b_32", 64, 3, attention=True).train()
    block = network.body.encoder.layers[0]
    seen: list[torch.Tensor] = []
    block.ln_1.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    output = network(torch.randn(2, 3, 64, 64))
    assert [tuple(layer.shape) for layer in output.attention] == [(2, 12, 5, 5)] * 12
    attention = block.self_attention
    q, k, _ = (seen[0] @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    q, k = (part.reshape(2, 5, 12, 64).transpose(1, 2) for part in (q, k))
    torch.testing.assert_close(output.attention[0], (q @ k.transpose(2, 3) / 8).softmax(-1), atol=1e-5, rtol=1e-3)
    assert network.eval()(torch.randn(2, 3, 64, 64)).attention == ()


REFUSED = {
    "unknown": ({"model": "resnet19"}, 32, "torchvision has no classifier resnet19; did you mean resnet18"),
    "too small": ({"model": "alexnet"}, 32, "torchvision:alexnet does not take pictures of 32x32 with 1 channel"),
    "stem": ({"model": "vit_b_16", "stem": "small"}, 32, "stem=small has no meaning for a vision transformer"),
    "maps": (
        {"model": "resnet18", "attention": True},
        32,
        "attention=true needs a network with complete attention maps",
    ),
    "no file": ({"model": "resnet18", "weights": "/none"}, 32, "weights=/none: cannot be read"),
}


@needs_torchvision
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_told_in_one_line(case: str):
    options, side, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as caught:
        build(side=side, **options)
    assert "\n" not in str(caught.value)


def test_without_torchvision_one_line_says_so():
    code = "import sys; sys.modules['torchvision'] = None\nfrom fedkd_mpi.run import main; sys.exit(main(sys.argv[1:]))"
    teacher = "teacher={name: torchvision:resnet18, learning_rate: 0.1}"
    done = run([sys.executable, "-c", code, teacher])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs torchvision: pip install" in done.stderr


def test_a_torchvision_of_another_build_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code = "from fedkd_mpi.run import main; import sys; sys.exit(main(sys.argv[1:]))"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"
    teacher = "teacher={name: torchvision:resnet18, learning_rate: 0.1}"
    done = run([sys.executable, "-c", code, teacher])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "torchvision cannot be imported beside torch" in done.stderr
    assert "nms" in done.stderr


def test_short_names_are_those_of_the_options(command: Command):
    short = load(overrides=["teacher={name: torchvision:resnet18, learning_rate: 0.1}"])
    spelled = load(overrides=["teacher={name: torchvision, model: resnet18, learning_rate: 0.1}"])
    assert short.digest() == spelled.digest()
    assert load(overrides=["student={name: 'hf:/a/b-c', learning_rate: 0.1}"]).student.options()["path"] == "/a/b-c"
    assert called("torchvision", short.teacher.options()) == "torchvision:resnet18"
    assert called("mlp", short.student.options()) == "mlp"
    assert_refused(
        command("teacher={name: torchvision:resnet18, steem: small, learning_rate: 0.1}"),
        "unknown key teacher.steem; did you mean teacher.stem?",
    )
    assert_refused(
        command("task=ner", "teacher={name: torchvision:resnet18, learning_rate: 0.1}"), "does not match task=ner"
    )


# Whole runs

HOW = [
    *("num_clients=2", "rounds=1", "partition={kind: iid}", "local.steps=2", "local.epochs=null", "local.batch_size=8"),
    *("device=cpu", "threads_per_rank=1", "optimizer.momentum=0"),
]


@needs_torchvision
def test_two_of_them_play_a_round_and_come_out_of_it(tmp_path: Path):
    teacher = "teacher={name: torchvision:mobilenet_v3_small, width: 32, stem: small, learning_rate: 0.05}"
    student = "student={name: torchvision:shufflenet_v2_x0_5, width: 16, learning_rate: 0.05}"
    log, file = tmp_path / "log.h5", tmp_path / "student.safetensors"
    assert main([*HOW, teacher, student, "--output", str(log)]) == 0
    rounds = costlog.read(log)["rounds"]
    assert np.isfinite([rounds["student_loss"], rounds["teacher_loss"], rounds["global_student_accuracy"]]).all()
    assert export([str(log), "--to", str(file)]) == 0
    network = fedkd_mpi.load_student(log)
    again = models.build("torchvision", (1, 8, 8), 10, {"model": "shufflenet_v2_x0_5", "width": 16}).eval()
    again.load_state_dict(load_file(file), strict=False)  # counters are not exported
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(again(x).logits, network(x).logits)


CONFIGURATIONS = {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 2},
}


def folder(path: Path, family: str, **changes: float) -> Path:
    """Write a folder with config.json alone."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": family, **CONFIGURATIONS[family], **changes}))
    return path


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_a_bare_configuration_is_a_new_network_for_the_datas_pictures(family: str, tmp_path: Path):
    pytest.importorskip("transformers")
    where = folder(tmp_path / family, family)
    network = models.build("hf", (1, 8, 8), 5, {"path": str(where), "width": 12, "attention": family == "vit"})
    output = network.train()(torch.randn(3, 1, 8, 8))
    assert (output.logits.shape, [hidden.shape for hidden in output.hidden]) == ((3, 5), [(3, 12)])
    assert [tuple(layer.shape) for layer in output.attention] == [(3, 2, 5, 5)] * (2 if family == "vit" else 0)
    nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    assert [name for name, tensor in network.named_parameters() if tensor.grad is None] == []


def test_a_folder_with_weights_begins_with_them(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTConfig(**CONFIGURATIONS["vit"], image_size=8, num_channels=3)
    saved = transformers.ViTModel(settings, add_pooling_layer=False).eval()
    saved.save_pretrained(tmp_path / "vit")
    network = models.build("hf", (3, 8, 8), 5, {"path": str(tmp_path / "vit"), "width": None}).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(x).hidden[0], saved(x).last_hidden_state.mean(1))
    with pytest.raises(UserError, match="reads pictures of 3 channels, the data have 8x8 with 1 channel"):
        models.build("hf", (1, 8, 8), 5, {"path": str(tmp_path / "vit")})
    with pytest.raises(UserError, match=r"does not take pictures of 16x16|cannot be loaded"):
        models.build("hf", (3, 16, 16), 5, {"path": str(tmp_path / "vit")})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a folder with config.json"),
        ('{"model_type": "bert"}', "a bert reads no pictures"),
        ('{"model_type": "vit", "auto_map": {}}', "needs code of its own"),
        ('{"model_type": "vitt"}', "cannot be loaded"),
    ],
)
def test_a_folder_without_a_network_of_pictures_is_refused(content: str | None, words: str, tmp_path: Path):
    pytest.importorskip("transformers")
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        models.build("hf", (1, 8, 8), 5, {"path": str(tmp_path)})
    assert "\n" not in str(caught.value)


def test_transformers_of_pictures_compare_attention_maps_through_a_whole_run(tmp_path: Path):
    pytest.importorskip("transformers")
    where = folder(tmp_path / "vit", "vit", initializer_range=0.5)
    both = [f"{role}={{name: 'hf:{where}', attention: true, learning_rate: 0.05}}" for role in ("teacher", "student")]
    losses = []
    for attention in ("true", "false"):
        log = tmp_path / f"{attention}.h5"
        assert main([*HOW, *both, f"distillation.attention={attention}", "--output", str(log)]) == 0
        losses.append(costlog.read(log)["rounds"]["teacher_loss"][0])
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
