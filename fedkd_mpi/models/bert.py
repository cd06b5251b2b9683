"""BERT-family encoders (Hugging Face transformers) with a head for texts, for tokens or for news to rank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.heads import NewsHead, TextHead, TokenHead
from fedkd_mpi.models.output import Output, Texts
from fedkd_mpi.streams import torch_scope

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: nothing is ever fetched
try:
    from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedModel
    from transformers.utils import logging
except ImportError as error:
    raise ImportError(f"{error}; pip install 'fedkd-mpi[text]'") from None

logging.set_verbosity_error()  # by default it reports the head that is not there, on every rank
logging.disable_progress_bar()

GROUP = 16  # texts that are read together
POSITIONS = 0.2  # how large the embedding of a place is in a new encoder, that of a word being 1


class Bert(nn.Module):
    """The first `layers` layers of an encoder and a head; its embeddings are frozen, and so are never exchanged.

    The encoder comes from the local folder `path` (config.json, model.safetensors), or is new: `layers`, `width`,
    `heads`, `intermediate`. A new one's embeddings are drawn from a fixed stream, so that all clients, teacher and
    student have the same. Attention maps have no dropout: equation 5 compares them. Raises UserError for inputs that
    are no texts, and where `path` does not fit.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        path: str | None,
        layers: int | None,
        width: int | None,
        heads: int | None,
        intermediate: int | None,
        dropout: float,
    ):
        super().__init__()
        if not isinstance(input_shape, Texts):
            raise UserError(f"a bert reads texts, the data have shape {list(input_shape)}; choose a task on texts")
        shared = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
        if path is None:
            width, heads = width or 128, heads or 4
            if width % heads:
                raise UserError(f"width={width} is not a multiple of heads={heads}")
            settings = BertConfig(
                vocab_size=input_shape.vocabulary,
                max_position_embeddings=input_shape.length,
                num_hidden_layers=layers or 4,
                hidden_size=width,
                num_attention_heads=heads,
                intermediate_size=intermediate or 4 * width,
                pad_token_id=input_shape.pad,
                **shared,
            )
            self.encoder = new_encoder(settings)
        else:
            self.encoder = load_encoder(Path(path), layers, input_shape, shared)
        self.encoder.embeddings.requires_grad_(False)
        settings = self.encoder.config
        self.hidden_sizes = (settings.hidden_size,) * settings.num_hidden_layers
        self.pad = input_shape.pad
        if input_shape.head == "candidate":
            self.head = NewsHead(settings.hidden_size, dropout)
        else:
            head = TokenHead if input_shape.head == "token" else TextHead
            self.head = head(settings.hidden_size, num_classes, dropout)

    def forward(self, ids: Tensor, *places: Tensor) -> Output:
        features = read(self.encoder, ids, self.pad)
        return features._replace(logits=self.head(features.hidden[-1], features.mask, *places))


def read(encoder: PreTrainedModel, ids: Tensor, pad: int) -> Output:
    """Return an encoder's hidden states [N, L, width] and attention maps of token ids [N, L]; the logits are empty.

    Maps are given in training alone. Texts are read in groups of about the same length, since padding costs as much
    time as words do; hidden states and maps of padding are zero or follow from padding alone.
    """
    mask = ids != pad
    hidden, attention = [], []
    order = mask.sum(1).argsort(stable=True)
    for rows in order.split(GROUP if encoder.training else 4 * GROUP):
        real = mask[rows]
        real = real[:, : max(int(real.sum(1).max()), 1)]
        short = ids.shape[1] - real.shape[1]
        found = encoder(
            ids[rows][:, : real.shape[1]],
            attention_mask=real.long(),
            output_hidden_states=True,
            output_attentions=encoder.training,
        )
        hidden.append([functional.pad(layer, (0, 0, 0, short)) for layer in found.hidden_states[1:]])
        attention.append([functional.pad(layer, (0, short, 0, short)) for layer in found.attentions or ()])
    back = order.argsort()
    joined = (tuple(torch.cat(layer)[back] for layer in zip(*parts, strict=True)) for parts in (hidden, attention))
    return Output(ids.new_empty(0), *joined, mask)


def new_encoder(settings: BertConfig) -> PreTrainedModel:
    """Return an encoder with random weights, its embeddings from a stream of their own.

    They are never trained: what is added to a word's must be small, or it is noise that no training takes away.
    """
    encoder = without_pooler(AutoModel.from_config(settings, attn_implementation="eager"))
    tables = encoder.embeddings
    with torch_scope(0, "embeddings"):
        nn.init.normal_(tables.word_embeddings.weight, std=settings.initializer_range)
        nn.init.normal_(tables.position_embeddings.weight, std=POSITIONS * settings.initializer_range)
    nn.init.zeros_(tables.token_type_embeddings.weight)
    return encoder


def load_encoder(path: Path, layers: int | None, shape: Texts, changes: dict[str, Any]) -> PreTrainedModel:
    """Return the first `layers` layers (default all) of the encoder in a local folder; raises UserError."""
    if not (path / "config.json").is_file():
        raise UserError(f"path={path} is no folder with config.json and model.safetensors; nothing is downloaded")
    try:
        settings = AutoConfig.from_pretrained(path, local_files_only=True)
        if (layers or 1) > settings.num_hidden_layers:
            raise UserError(f"layers={layers}, but {path} has {settings.num_hidden_layers}")
        if shape.vocabulary > settings.vocab_size or shape.length > settings.max_position_embeddings:
            raise UserError(
                f"{path} knows {settings.vocab_size} tokens and reads {settings.max_position_embeddings}, the data have"
                f" {shape.vocabulary} and up to {shape.length} a text: set data.tokenizer to it, or data.length"
            )
        settings.num_hidden_layers = layers or settings.num_hidden_layers
        for name, value in changes.items():
            setattr(settings, name, value)
        if torch.get_default_device().type == "meta":
            return without_pooler(AutoModel.from_config(settings, attn_implementation="eager"))
        encoder, report = AutoModel.from_pretrained(
            path,
            config=settings,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"path={path} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    lacking = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise UserError(f"path={path} lacks {len(lacking)} tensors of its config.json, the first is {lacking[0]}")
    return without_pooler(encoder.train())


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder without the layer on top that no head here uses and that would travel for nothing."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder
