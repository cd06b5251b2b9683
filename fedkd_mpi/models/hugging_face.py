"""Encoders of texts as folders that transformers loads: configuration, weights, tokenizer, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.models.bert import read
from fedkd_mpi.models.heads import TokenHead
from fedkd_mpi.models.output import Texts

# isort: split
from transformers import AutoModel, AutoModelForTokenClassification, PreTrainedTokenizerFast  # offline by now

CLOSE = 1e-4
ROLES = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
TAGGER = """
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForTokenClassification.from_pretrained(".")
logits = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits  # a tag of every token
"""
READER = """
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer, encoder = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")
head = load_file("head.safetensors")
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
hidden, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
"""
USES = {
    "text": READER
    + "mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)\n"
    + 'logits = mean @ head["out.weight"].T + head["out.bias"]\n',
    "token": READER + 'logits = hidden @ head["out.weight"].T + head["out.bias"]  # a tag of every token\n',
    "candidate": READER + "# head.safetensors: additive attention over words (title.*) and clicked news (user.*)\n",
}


@torch.no_grad()
def save(network: Any, shape: Texts, tokenizer: np.ndarray | None, classes: Sequence[str], folder: Path) -> str:
    """Write the folder of a network with an encoder and a head (models/bert.py); returns how it is used.

    A tagger becomes a model for token classification where the library's own is the same function; else the encoder is
    loaded by AutoModel, and the head is in head.safetensors. `tokenizer` is the data set's, as JSON.
    """
    use = USES[shape.head]
    tagger = _tagger(network, shape, classes) if isinstance(network.head, TokenHead) else None
    if tagger is not None:
        tagger.save_pretrained(folder)
        use = TAGGER
    else:
        with torch_scope(0, "export"):
            plain = AutoModel.from_config(network.encoder.config)
        if getattr(plain, "pooler", None) is not None:
            plain.register_module("pooler", None)
        _take(plain, network.encoder.state_dict())
        plain.save_pretrained(folder)
        head = {name: tensor.contiguous() for name, tensor in network.head.state_dict().items()}
        save_file(head, folder / "head.safetensors", {"format": "pt"})
    if tokenizer is not None:
        _save_tokenizer(tokenizer, shape, folder)
    return use


def _take(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load tensors into a model of the same family, without the constants that follow from its configuration."""
    own = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own})


def _tagger(network: Any, shape: Texts, classes: Sequence[str]) -> Any:
    """Return the library's model for token classification with these weights; None where it computes something else."""
    tags = ["O", *(f"{mark}-{kind}" for kind in classes for mark in "BI")]
    config = type(network.encoder.config).from_dict(network.encoder.config.to_dict())
    config.id2label = dict(enumerate(tags))
    config.label2id = {tag: index for index, tag in enumerate(tags)}
    try:
        with torch_scope(0, "export"):
            made = AutoModelForTokenClassification.from_config(config, attn_implementation="eager").eval()
    except ValueError:  # the library has none of this family
        return None
    last = getattr(made, "classifier", None)
    if not isinstance(last, nn.Linear) or last.weight.shape != network.head.out.weight.shape:
        return None
    _take(made.base_model, network.encoder.state_dict())
    last.load_state_dict(network.head.out.state_dict())
    with torch_scope(0, "export"):
        ids = torch.randint(0, shape.vocabulary, (2, shape.length))
    ids[ids == shape.pad] = int(shape.pad == 0)
    ids[1, shape.length // 2 :] = shape.pad
    mask = ids != shape.pad
    hidden = read(network.encoder.eval(), ids, shape.pad).hidden[-1]
    due, found = network.head.eval()(hidden, mask), made(ids, attention_mask=mask.long()).logits
    return made if torch.allclose(due[mask], found[mask], atol=CLOSE) else None


def _save_tokenizer(tokenizer: np.ndarray, shape: Texts, folder: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(tokenizer.tobytes().decode())
    tokens = made.get_vocab()
    roles = {role: next((name for name in names if name in tokens), None) for role, names in ROLES.items()}
    given = {role: name for role, name in roles.items() if name is not None}
    inputs = ["input_ids", "attention_mask"]  # the networks here are given no other
    saved = PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=shape.length, model_input_names=inputs, **given
    )
    saved.save_pretrained(folder)
