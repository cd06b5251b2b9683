"""BERT-family encoders (Hugging Face transformers) with a head for texts, tokens or news ranking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.heads import NewsHead, TextHead, TokenHead
from fedkd_mpi.models.output import Output, Texts
from fedkd_mpi.models.pretrained import freeze_embeddings, load_encoder, without_pooler

# isort: split
from transformers import AutoModel, BertConfig, PreTrainedModel  # after pretrained.py, which sets offline mode

GROUP = 16  # texts that are encoded at once in training
POSITIONS = 0.2  # scale of position embeddings in a new encoder, relative to word embeddings


class Bert(nn.Module):
    """The first `layers` layers of an encoder and a head; the embeddings are frozen and therefore never exchanged.

    The encoder is read from the local folder `path` (see pretrained.py) or is new, with `layers`, `width`, `heads` and
    `intermediate`. The embeddings of a new encoder are drawn from a fixed stream, so that teachers and students of all
    clients have the same. Attention maps have no dropout, because equation 5 compares them. Raises UserError for inputs
    that are not texts, and if `path` does not match the data.
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
            raise UserError(f"a bert needs texts, but the data have shape {list(input_shape)}; choose a task on texts")
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
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=0.0,
            )
            self.encoder = new_encoder(settings)
        else:
            self.encoder = load_encoder(Path(path), layers, input_shape, dropout)
        freeze_embeddings(self.encoder)
        width, depth = self.encoder.config.hidden_size, self.encoder.config.num_hidden_layers
        self.hidden_sizes = (width,) * depth
        self.pad = input_shape.pad
        self.head: nn.Module
        if input_shape.head == "candidate":
            self.head = NewsHead(width, dropout)
        else:
            head = TokenHead if input_shape.head == "token" else TextHead
            self.head = head(width, num_classes, dropout)

    def forward(self, ids: Tensor, *places: Tensor) -> Output:
        features = read(self.encoder, ids, self.pad)
        return features._replace(logits=self.head(features.hidden[-1], features.mask, *places))


def read(encoder: PreTrainedModel, ids: Tensor, pad: int) -> Output:
    """Return an encoder's hidden states [N, L, width] and attention maps for token ids [N, L]; the logits are empty.

    Attention maps are returned in training mode only. Texts are encoded in groups of similar length, because padding
    takes as much time as words. Hidden states and maps of padding are zero or depend on padding only. `pad` is the
    padding id.
    """
    mask = ids != pad
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    hidden, attention = [], []
    order = mask.sum(1).argsort(stable=True)
    for rows in order.split(GROUP if encoder.training else 4 * GROUP):
        longest = int((mask[rows].any(0) * places).max().clamp_min(1))
        real = mask[rows, :longest]
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
    states, maps = (
        tuple(torch.cat(layer)[back] for layer in zip(*parts, strict=True)) for parts in (hidden, attention)
    )
    return Output(ids.new_empty(0), states, maps, mask)


def new_encoder(settings: BertConfig) -> PreTrainedModel:
    """Return an encoder with random weights and embeddings from a fixed random stream.

    The embeddings are never trained. Position embeddings must be small, because training cannot remove their noise.
    """
    encoder: PreTrainedModel = without_pooler(AutoModel.from_config(settings, attn_implementation="eager"))
    tables: Any = encoder.embeddings
    with torch_scope(0, "embeddings"):
        nn.init.normal_(tables.word_embeddings.weight, std=settings.initializer_range)
        nn.init.normal_(tables.position_embeddings.weight, std=POSITIONS * settings.initializer_range)
    nn.init.zeros_(tables.token_type_embeddings.weight)
    return encoder
