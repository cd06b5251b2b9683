"""Tiny encoders of every family in folders of their own, as Hugging Face writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fedkd_mpi.common.torch_streams import torch_scope

WORDS = ("pain", "headache", "rash", "had", "i", "the", "a", "after", "aspirin", "took", "bad", "no")
STANDARD = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "vocab_size": 24,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {**STANDARD, "embedding_size": 8},
    "bert": STANDARD,
    "camembert": {**STANDARD, "pad_token_id": 1},
    "data2vec-text": {**STANDARD, "pad_token_id": 1},
    "deberta": {**STANDARD, **RELATIVE, "type_vocab_size": 0},
    "deberta-v2": {**STANDARD, **RELATIVE, "type_vocab_size": 0, "position_buckets": 4, "norm_rel_ebd": "layer_norm"},
    "distilbert": {
        "dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 20,
        "vocab_size": 24,
    },
    "electra": {**STANDARD, "embedding_size": 8},
    "ernie": STANDARD,
    "megatron-bert": STANDARD,
    "mobilebert": {**STANDARD, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8},
    "modernbert": {
        **STANDARD,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 4,
    },
    "mpnet": {**STANDARD, "pad_token_id": 1},
    "roberta": {**STANDARD, "pad_token_id": 1},
    "roformer": {**STANDARD, "embedding_size": 8},
    "xlm-roberta": {**STANDARD, "pad_token_id": 1},
}
OTHERS = (  # families that are refused
    *("big_bird", "longformer", "fnet", "convbert", "canine", "funnel", "squeezebert", "xlnet", "yoso", "gpt2"),
    *("llama", "bart", "t5", "rembert", "esm", "nystromformer", "vit", "wav2vec2", "clip"),
)


def write(folder: Path, family: str, **changes: Any) -> Path:
    """Write configuration, random weights and a tokenizer of its family."""
    import transformers

    settings = transformers.CONFIG_MAPPING[family](**{**FAMILIES[family], **changes})
    with torch_scope(3, "weights"):
        model = transformers.AutoModel.from_config(settings)
        for parameter in model.parameters():  # a fresh one's norms and biases hide what is lost
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_tokenizer(folder, settings.pad_token_id or 0)
    return folder


def write_tokenizer(folder: Path, pad: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    marks = ["<s>", "<pad>", "</s>", "<unk>"] if pad else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    first, last = ("<s>", "</s>") if pad else ("[CLS]", "[SEP]")
    ids = {word: index for index, word in enumerate([*marks, *WORDS])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>" if pad else "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, ids[first]), (last, ids[last])]
    )
    made.add_special_tokens(marks)
    made.save(str(folder / "tokenizer.json"))


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def change_weights(folder: Path, **changes: Any) -> Path:
    """Convert all weights to `dtype`, or replace tensors by their names."""
    tensors = load_file(folder / "model.safetensors")
    dtype = changes.pop("dtype", None)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file({**tensors, **changes}, folder / "model.safetensors", {"format": "pt"})
    return folder
