"""Encoders of a local folder: every family is read as transformers reads it, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_folders import FAMILIES, OTHERS, WORDS, change_config, change_weights, write, write_tokenizer
from torch import nn

from fedkd_mpi import costlog, datasets, models
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.datasets.tokens import Tokens
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.output import Texts

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra text)")
families = pytest.importorskip("fedkd_mpi.models.families")

LENGTH = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {family: write(root / family, family) for family in FAMILIES}


def pad_of(folder: Path) -> int:
    return transformers.AutoConfig.from_pretrained(folder).pad_token_id or 0


def build(folder: Path, head: str = "text", **options: object) -> nn.Module:
    pad = options.pop("pad") if "pad" in options else pad_of(folder)
    shape = Texts(24, options.pop("length", LENGTH), pad, head)
    with torch_scope(0, "model"):
        return models.build("bert", shape, 3, {"path": str(folder), "dropout": 0.0, **options}, "teacher")


def refused(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        build(folder, **{"pad": 0, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(lengths: tuple[int, ...], pad: int) -> torch.Tensor:
    draw = np.random.default_rng(0)
    ids = np.full((len(lengths), max(lengths)), pad)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = draw.integers(4, 24, length)
    return torch.from_numpy(ids)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write(tmp_path / "bert", "bert")


def test_every_family_that_is_named_has_a_folder_here():
    assert list(FAMILIES) == list(families.OFFSET)
    assert not set(families.REASONS) & set(families.OFFSET)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_read_as_transformers_reads_it(folders, family):
    folder = folders[family]
    model, ids = build(folder), texts((9, 9, 9), pad_of(folder))
    plain = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = plain(ids, output_hidden_states=True, output_attentions=True)
        out, again = model(ids), model(ids)  # in training, without dropout
    assert (len(out.hidden), len(out.attention)) == (3, 3)
    assert model.hidden_sizes == (16, 16, 16)
    for ours, theirs in zip(out.hidden, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(out.attention, expected.attentions, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(out.logits, again.logits)
    # The first layer alone: cut, not merely left out of the output.
    cut = build(folder, layers=1)
    with torch.no_grad():
        torch.testing.assert_close(cut(ids).attention[0], expected.attentions[0])
    assert len(cut.hidden_sizes) == 1
    if family != "albert":  # whose layers are one and the same
        assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_set_everywhere_but_never_in_maps_and_padding_plays_no_part(folders, family):
    folder = folders[family]
    model = build(folder, dropout=0.3)
    ids = texts((3, 9, 5), pad_of(folder))
    with torch_scope(0, "dropout"):
        out, again = model(ids), model(ids)
    assert not torch.equal(out.hidden[-1], again.hidden[-1])
    for maps in out.attention:
        for row, real in zip(maps, out.mask, strict=True):
            torch.testing.assert_close(row[:, real].sum(-1), torch.ones(2, int(real.sum())))
    out.logits.sum().backward()
    network = {layer.name for layer in FlatModel(build(folder), "cpu").layers}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in network), name
        frozen = "embed" in name or "relative_attention_bias" in name or "inv_freq" in name
        assert parameter.requires_grad != frozen, name
        assert frozen or parameter.grad is not None, f"{name} would travel for nothing"
    assert not [name for name, tensor in model.named_buffers() if tensor.is_floating_point()]
    model.eval()
    with torch.no_grad():
        whole = model(ids)
        for row, length in enumerate((3, 9, 5)):
            alone = model(ids[row : row + 1, :length])
            torch.testing.assert_close(whole.logits[row], alone.logits[0])
            torch.testing.assert_close(whole.hidden[-1][row, :length], alone.hidden[-1][0])


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_refused_by_name(bert, family):
    change_config(bert, model_type=family)
    assert f"the family '{family}' is not supported" in refused(bert)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_that_begin_after_the_padding_leave_fewer_tokens(folders, family):
    most = 20 - (2 if families.OFFSET[family] else 0)
    model = build(folders[family], length=most)
    assert model(texts((most,), pad_of(folders[family]))).logits.isfinite().all()
    found = refused(folders[family], length=most + 1, pad=pad_of(folders[family]))
    assert f"reads texts of {most}, but the data have 24 tokens and texts of up to {most + 1}" in found


def test_half_precision_becomes_float32_exactly(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        folder = write(tmp_path / str(dtype), "bert")
        # Clones: with older versions of transformers, tensors lie in the file itself, which is overwritten below.
        whole = {name: tensor.clone() for name, tensor in build(folder).encoder.state_dict().items()}
        change_weights(change_config(folder, dtype=str(dtype).removeprefix("torch.")), dtype=dtype)
        for name, tensor in build(folder).encoder.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, whole[name].to(dtype).float()), name


def test_weights_that_are_not_those_of_the_configuration_are_refused(bert):
    weights, config = ((bert / name).read_bytes() for name in ("model.safetensors", "config.json"))

    def check(expected: str, **options: object) -> None:
        assert expected in refused(bert, **options)
        (bert / "model.safetensors").write_bytes(weights)
        (bert / "config.json").write_bytes(config)

    for key, value in {"hidden_size": 18, "intermediate_size": 25, "vocab_size": 30, "type_vocab_size": 3}.items():
        change_config(bert, **{key: value})
        check("cannot be loaded")
    for key, value in {"num_attention_heads": 3, "hidden_act": "none", "num_hidden_layers": "three"}.items():
        change_config(bert, **{key: value})
        check("path=")
    change_config(bert, num_hidden_layers=2)
    check("has the tensor encoder.layer.2.")
    change_config(bert, num_hidden_layers=4)
    check("16 tensors of its config.json are missing")
    change_config(bert, model_type="roberta")
    check("model_type roberta, architecture BertModel", pad=1)
    change_config(bert, pad_token_id=99)
    check("pads with token 99, but the data with 0")
    check("pads with token 0, but the data with 99", pad=99)
    change_config(bert, is_decoder=True)
    check("is_decoder is set")
    change_config(bert, quantization_config={"quant_method": "bitsandbytes"})
    check("quantised")
    change_config(bert, auto_map={"AutoModel": "mine.Mine"})
    check("code of its own (auto_map")
    change_config(bert, model_type=None)
    check("has no model_type")
    change_weights(bert, dtype=torch.float64)
    check("is F64")
    change_weights(bert, **{"embeddings.LayerNorm.bias": torch.full((16,), float("nan"))})
    check("LayerNorm.bias contains NaN")
    (bert / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    check("is damaged and cannot be loaded")
    (bert / "config.json").write_text("[" * 100_000)
    check("is not JSON")
    (bert / "adapter_config.json").write_text("{}")
    check("contains an adapter")


def test_a_path_may_hold_variables_and_a_tilde(bert, monkeypatch):
    monkeypatch.setenv("ENCODERS", str(bert.parent))
    monkeypatch.setenv("HOME", str(bert.parent))
    for path in ("$ENCODERS/bert", "~/bert"):
        assert len(build(Path(path), pad=0).hidden_sizes) == 3
        assert Tokens(path, 8000, LENGTH, True).fit([]).meta["vocabulary"] == 16
    assert "$NOWHERE/bert is not a folder" in refused(Path("$NOWHERE/bert"))


@pytest.mark.parametrize("name", ["ade", "smm4h", "medical_ner", "mind_small"])
def test_stand_ins_are_padded_as_the_encoder_pads(folders, name, tmp_path):
    options = datasets.check(name, {"tokenizer": str(folders["roberta"]), "length": 20})
    data = datasets.load_or_stand_in(name, tmp_path, 0, options)
    ids = data.tables["titles"] if name.startswith("mind") else data.train["ids"]
    assert data.meta["pad"] == 1
    assert ids[0].tolist() == [0] * 16 + [1] * 4


def test_code_in_a_folder_is_never_run(bert, tmp_path):
    seen = tmp_path / "seen"
    (bert / "mine.py").write_text(f"open({str(seen)!r}, 'w').close()\nclass Mine: pass\n")
    for model_type in ("bert", "mine"):
        change_config(bert, auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}, model_type=model_type)
        assert "auto_map" in refused(bert)
    (bert / "model.safetensors").unlink()
    (bert / "config.json").write_text((write(tmp_path / "other", "bert") / "config.json").read_text())
    assert "no weights (model.safetensors)" in refused(bert)
    torch.save({"a": torch.ones(1)}, bert / "pytorch_model.bin")
    assert "weights in pytorch_model.bin, which is not read (a pickle may run code)" in refused(bert)
    (bert / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    assert "which is not a file in the folder" in refused(bert)
    assert not seen.exists()


def test_albert_with_several_groups_is_read_whole_or_not_at_all(tmp_path):
    folder = write(tmp_path / "albert", "albert", num_hidden_layers=4, num_hidden_groups=2)
    assert len(build(folder).hidden_sizes) == 4
    assert "an albert of 2 groups of layers cannot be cut" in refused(folder, layers=2)
    assert "inner_group_num=2" in refused(write(tmp_path / "inner", "albert", inner_group_num=2))


def test_tokens_of_another_tokenizer_are_refused(bert, tmp_path):
    def model(tokenizer: Path | None) -> None:
        meta = Tokens(tokenizer and str(tokenizer), 2000, LENGTH, True).fit([" ".join(WORDS)] * 3).meta
        meta = {**meta, "vocabulary": min(meta["vocabulary"], 24)}
        models.build("bert", Texts.of(meta, "text"), 3, {"path": str(bert)}, "student")

    model(bert)
    other = tmp_path / "other"
    other.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *reversed(WORDS)]
    (other / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(UserError, match="are not those of the tokenizer in"):
        model(other)
    with pytest.raises(UserError, match="the tokenizer was trained on the data"):
        model(None)
    write_tokenizer(other, pad=1)
    with pytest.raises(UserError, match="pads with token 0, but the data with 1"):
        model(other)
    (other / "vocab.txt").write_text("\n".join(words[:4] + sorted(WORDS)) + "\n")
    (other / "tokenizer.json").unlink()
    (bert / "tokenizer.json").unlink()  # nothing to compare with
    model(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_rounds_of_every_family(folders, family, tmp_path, in_process):
    from fedkd_mpi.run import main

    data = tmp_path / "data" / "smm4h"
    data.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 8)):
        rows = [" ".join(draw.choice(WORDS[:8], 5)) + f" {WORDS[8 + n % 2]}\t{n % 2}" for n in range(count)]
        (data / f"{part}.tsv").write_text("\n".join(["tweet\tclass", *rows]) + "\n")
    model = f"name: bert, path: {folders[family]}, learning_rate: 0.01"
    log = tmp_path / "run.h5"
    code, _, err = in_process(
        main,
        *("task=text_classification", "rounds=2", "num_clients=2", "partition={kind: iid}", "local.epochs=null"),
        *("local.steps=1", "checkpoint.every=null", f"teacher={{{model}}}", f"student={{{model}, layers: 1}}"),
        f"data={{name: smm4h, root: {tmp_path / 'data'}, tokenizer: {folders[family]}, length: {LENGTH}}}",
        *("--output", str(log)),
    )
    assert code == 0, err
    assert len(costlog.read(log)["rounds"]["round"]) == 2
