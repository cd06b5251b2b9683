"""BERT-family teachers and students: what is frozen, what padding must not change, weights from a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loaded_modules import loaded_after
from text_data import write_ade
from torch import Tensor, nn

from fedkd_mpi import models
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.datasets import load
from fedkd_mpi.distillation import HiddenMap, attention_error
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.output import Texts

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra text)")

SHAPE = Texts(vocabulary=50, length=12, pad=0, head="text")
OPTIONS = {"layers": 4, "width": 16, "heads": 4, "dropout": 0.0}


def build(head: str = "text", seed: int = 0, **options: object) -> nn.Module:
    with torch_scope(seed, "model"):
        return models.build("bert", SHAPE._replace(head=head), 3, {**OPTIONS, **options}, "teacher")


def token_ids(lengths: tuple[int, ...], width: int) -> Tensor:
    draw = np.random.default_rng(0)
    ids = np.zeros((len(lengths), width), np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = draw.integers(1, 50, length)
    return torch.from_numpy(ids)


def test_embeddings_are_frozen_equal_everywhere_and_in_no_flat_vector():
    one, two = build(seed=1), build(seed=2, layers=2)
    for (name, tensor), other in zip(
        one.encoder.embeddings.named_parameters(), two.encoder.embeddings.parameters(), strict=True
    ):
        assert not tensor.requires_grad
        assert torch.equal(tensor, other), name
    assert not torch.equal(one.head.out.weight, two.head.out.weight)
    network = FlatModel(two, "cpu")
    assert not [layer.name for layer in network.layers if "embedding" in layer.name or "pooler" in layer.name]
    # Two layers of BERT by the book: 4 square maps, two of the feed-forward, their biases, two LayerNorms; and a head.
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 4 * 16
    assert sum(layer.numel for layer in network.layers) == 2 * layer + 3 * 16 + 3


@pytest.mark.parametrize("head", ["text", "token"])
def test_padding_and_neighbours_change_nothing(head):
    lengths = (5, 12, 3, 7, 9, 1, 4, 8, 2, 11, 6)  # more than are read together
    model, ids = build(head), token_ids(lengths, 12)
    out = model(ids)
    assert [len(part) for part in (out.hidden, out.attention)] == [4, 4]
    assert out.hidden[0].shape == (11, 12, 16)
    assert out.attention[0].shape == (11, 4, 12, 12)
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length])
        if head == "text":
            torch.testing.assert_close(out.logits[row], alone.logits[0])
        else:
            torch.testing.assert_close(out.logits[row, :length], alone.logits[0])
        torch.testing.assert_close(out.hidden[-1][row, :length], alone.hidden[-1][0])
        torch.testing.assert_close(out.attention[1][row, :, :length, :length], alone.attention[1][0])
        assert out.attention[1][row, :, :length, length:].abs().max() == 0 if length < 12 else True


def test_the_encoder_is_bert_itself():
    model, ids = build(), token_ids((12, 12), 12)
    hidden = model(ids).hidden
    reference = transformers.BertModel(model.encoder.config, add_pooling_layer=False)
    reference.load_state_dict(model.encoder.state_dict())
    expected = reference(ids, output_hidden_states=True).hidden_states
    for ours, theirs in zip(hidden, expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_feature_losses_do_not_depend_on_the_amount_of_padding():
    teacher, student = build(), build(seed=1, layers=2, width=8, heads=2)
    with torch_scope(0, "map"):
        hidden_map = HiddenMap(teacher.hidden_sizes, student.hidden_sizes)
    values = []
    for width in (7, 12):
        ids = token_ids((5, 7), width)
        t, s = teacher(ids), student(ids)
        values.append((hidden_map(t.hidden, s.hidden, t.mask), attention_error(t.attention, s.attention, t.mask)))
    torch.testing.assert_close(values[0], values[1])
    # The hidden term by hand: pairs (1, 0) and (3, 1), the twelve real tokens alone.
    real = t.mask
    by_hand = [
        (t.hidden[a][real] - s.hidden[b][real] @ linear.weight.T).square().mean()
        for (a, b), linear in zip(((1, 0), (3, 1)), hidden_map.maps, strict=True)
    ]
    assert int(real.sum()) == 12
    torch.testing.assert_close(values[1][0], torch.stack(by_hand).mean())
    # The attention term by hand: different numbers of heads are averaged; 5 x 5 and 7 x 7 places.
    squares = [
        [
            (t.attention[a][n, :, :k, :k].mean(0) - s.attention[b][n, :, :k, :k].mean(0)).square().sum()
            for n, k in ((0, 5), (1, 7))
        ]
        for a, b in ((1, 0), (3, 1))
    ]
    torch.testing.assert_close(values[1][1], sum(sum(pair) for pair in squares) / 2 / (25 + 49))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights and vocabulary of a small BERT, as Hugging Face writes them."""
    with torch_scope(3, "weights"):
        settings = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 3}
        transformers.BertModel(
            transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **settings)
        ).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "aspirin", "caused", "rash", "case", "was", "given"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path


FREE = {"width": None, "heads": None}


def test_a_student_from_a_folder_is_the_teachers_first_layers(folder):
    teacher, student = (build(path=str(folder), layers=layers, **FREE) for layers in (None, 2))
    assert (len(teacher.hidden_sizes), len(student.hidden_sizes)) == (3, 2)
    original = transformers.BertModel.from_pretrained(folder).state_dict()
    for model in (teacher, student):
        for name, tensor in model.encoder.state_dict().items():
            assert torch.equal(tensor, original[name]), name
    assert not any(p.requires_grad for p in teacher.encoder.embeddings.parameters())
    assert teacher.training
    with torch.device("meta"):
        assert models.build("bert", SHAPE, 3, {"path": str(folder)}, "teacher").head.out.weight.is_meta


def test_a_tokenizer_from_a_folder(folder, tmp_path):
    write_ade(tmp_path / "data")
    data = load("ade", tmp_path / "data", 0, {"tokenizer": str(folder), "length": 10})
    assert data.meta == {**data.meta, "vocabulary": 11, "pad": 0, "length": 10}
    assert set(data.train["ids"][:, 0]) == {2}


def test_what_does_not_fit_is_refused_in_one_line(folder):
    def refused(shape: tuple, **options: object) -> str:
        with pytest.raises(UserError) as caught:
            models.build("bert", shape, 3, options, "student")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "needs texts, but the data have shape [3, 8, 8]" in refused((3, 8, 8))
    assert "width=10 is not a multiple of heads=4" in refused(SHAPE, width=10)
    assert "width is determined by path" in refused(SHAPE, path=str(folder), width=16)
    assert "nothing is downloaded" in refused(SHAPE, path="bert-base-uncased")
    assert "layers=4, but" in refused(SHAPE, path=str(folder), layers=4)
    assert "set data.tokenizer" in refused(SHAPE._replace(vocabulary=60), path=str(folder))
    for options in ({"name": "mlp"}, {"name": "cnn"}):
        with pytest.raises(UserError, match=r"^teacher: "):
            models.build(options["name"], SHAPE, 3, {}, "teacher")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refused(SHAPE, path=str(folder))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 5}))
    transformers.BertModel(transformers.BertConfig(**settings)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 5}))
    assert "32 tensors of its config.json are missing" in refused(SHAPE, path=str(folder))


def test_a_run_on_texts_loads_nothing_of_the_other_tasks(tmp_path):
    write_ade(tmp_path)
    bert = "{name: bert, layers: 1, width: 8, heads: 2, learning_rate: 0.001}"
    overrides = [
        "task=text_classification",
        f"data={{name: ade, root: {tmp_path}, vocabulary: 200, length: 16}}",
        f"teacher={bert}",
        f"student={bert}",
        "partition={kind: iid}",
        "num_clients=2",
    ]
    modules = loaded_after(
        "from fedkd_mpi.config import load as config; from fedkd_mpi.simulation.dry_run import forecast\n"
        f"forecast(config.load(overrides={overrides!r}), 1)"
    )
    assert "transformers" in modules
    assert modules.isdisjoint({"pydicom", "skimage"})
    ours = {name.rpartition(".")[2] for name in modules if name.startswith("fedkd_mpi.")}
    assert ours.isdisjoint({"image_classification", "denoising", "ner", "news", "cifar", "mind", "cadec", "cnn", "mlp"})
