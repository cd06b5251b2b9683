"""Encoders from a local folder: its files are validated before use, and code in it is never run."""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.datasets import expanded
from fedkd_mpi.datasets.tokens import TRAINED, fingerprint
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.families import OFFSET, why_not
from fedkd_mpi.models.output import Texts

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, so that it never downloads
try:
    import huggingface_hub.errors
    import transformers
    from transformers import AutoConfig as AutoConfig
    from transformers import AutoModel as AutoModel
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils import logging
except ImportError as error:
    raise ImportError(f"{error}; pip install 'fedkd-mpi[text]'") from None

logging.set_verbosity_error()  # by default transformers reports the missing head on every rank
logging.disable_progress_bar()

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")  # types that convert to float32 exactly
FOREIGN = ("bin", "pt", "pth", "ckpt", "h5", "msgpack")
LAYER = re.compile(r"(?:^|\.)(?:layers?|albert_layer_groups)\.(\d+)\.")
# Exceptions that the libraries raise for an inconsistent folder; its files are input from outside.
ERRORS = (
    *(OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, AssertionError, IndexError),
    SafetensorError,
    getattr(huggingface_hub.errors, "StrictDataclassError", ValueError),  # of transformers 5
)


def load_encoder(path: Path, layers: int | None, shape: Texts, dropout: float) -> PreTrainedModel:
    """Return the first `layers` layers (default all) of the encoder in a local folder, in float32.

    `dropout` applies to hidden states, not to attention maps. On the device "meta" no weights are read. Raises
    UserError if the folder is invalid or does not match the texts.
    """
    path = expanded(path)
    try:
        settings = _settings(path, layers, dropout)
        _fits(path, settings, shape)
        check_files(path)
        if torch.get_default_device().type == "meta":
            return without_pooler(AutoModel.from_config(settings, attn_implementation="eager"))
        encoder = without_pooler(_weights(path, settings))
        _check_run(encoder)
    except UserError:
        raise
    except ERRORS as error:
        raise UserError(f"path={path} cannot be loaded: {_line(error)}") from None
    if settings.model_type == "mobilebert":  # its first layer combines neighbouring tokens, including padding
        table: Any = encoder.get_input_embeddings()
        table.weight.data[shape.pad] = 0
    return encoder.train()


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder without its pooler, which no head uses and which would be exchanged without need."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.register_module("pooler", None)
    return encoder


def freeze_embeddings(encoder: PreTrainedModel) -> None:
    """Freeze the embeddings of words, positions and distances, and their projection to the width of the first layer.

    Floating-point constants in buffers (ModernBERT's frequencies) become frozen parameters. As buffers they would be
    exchanged like BatchNorm statistics.
    """
    for name, parameter in encoder.named_parameters():
        if "embed" in name or "relative_attention_bias" in name:
            parameter.requires_grad_(False)
    for module in encoder.modules():
        for name, constant in list(module.named_buffers(recurse=False)):
            if constant.is_floating_point():
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(constant, requires_grad=False))


def _settings(path: Path, layers: int | None, dropout: float) -> PretrainedConfig:
    """Return config.json with the first `layers` layers and this dropout; raises UserError if it is not supported."""
    raw = json_object(path / "config.json")
    family = raw.get("model_type")
    if "auto_map" in raw:
        raise UserError(f"path={path} needs code of its own (auto_map in config.json), which is never run here")
    if reason := why_not(family):
        raise UserError(f"path={path}: {reason}")
    if raw.get("quantization_config") is not None:
        raise UserError(f"path={path} contains quantised weights ({family}); save it in float32, float16 or bfloat16")
    for key in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        if raw.get(key):
            raise UserError(f"path={path}: {key} is set in the config.json of this {family}; it must be an encoder")
    if raw.get("position_embedding_type") not in (None, "absolute"):
        raise UserError(f"path={path}: position_embedding_type={raw['position_embedding_type']!r} is not supported")
    _check_architectures(path, raw)
    settings = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    _check_layers(path, settings, layers)
    settings.num_hidden_layers = layers or settings.num_hidden_layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[: settings.num_hidden_layers]
    for name, value in settings.to_dict().items():
        if "drop" in name and isinstance(value, int | float):
            setattr(settings, name, 0.0 if "att" in name or name == "layerdrop" else float(dropout))
    for name, plain in {"return_dict": True, "use_cache": False, "chunk_size_feed_forward": 0}.items():
        if hasattr(settings, name):
            setattr(settings, name, plain)
    return settings


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a folder; raises UserError naming the folder where there is none."""
    if not path.is_file():
        raise UserError(f"path={path.parent} is not a folder with config.json and {WEIGHTS}; nothing is downloaded")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def _check_architectures(path: Path, raw: dict[str, Any]) -> None:
    """Raise UserError if the folder was written by classes of another family, whose names could match by accident."""
    names = raw.get("architectures") or []
    for name in names if isinstance(names, list) else [names]:
        made = getattr(getattr(transformers, str(name), None), "config_class", None)
        other = getattr(made, "model_type", raw["model_type"])
        if other != raw["model_type"]:
            raise UserError(
                f"path={path}: config.json contradicts itself: model_type {raw['model_type']}, architecture {name}"
            )


def _check_layers(path: Path, settings: PretrainedConfig, layers: int | None) -> None:
    present = settings.num_hidden_layers
    if not isinstance(present, int) or present < 1:
        raise UserError(f"path={path}: num_hidden_layers is {present!r} in config.json, not a number of 1 or more")
    if (layers or 1) > present:
        raise UserError(f"layers={layers}, but {path} has {present}")
    if settings.model_type != "albert":
        return
    if settings.inner_group_num != 1:
        raise UserError(f"path={path}: an albert with inner_group_num={settings.inner_group_num}; only 1 is supported")
    if layers not in (None, present) and settings.num_hidden_groups != 1:
        raise UserError(f"layers={layers}: an albert of {settings.num_hidden_groups} groups of layers cannot be cut")


def _fits(path: Path, settings: PretrainedConfig, shape: Texts) -> None:
    """Raise UserError if tokens or lengths of the data do not match the encoder."""
    pad, most = settings.pad_token_id, settings.max_position_embeddings
    if OFFSET[settings.model_type]:
        if pad is None:
            raise UserError(f"path={path}: its config.json has no pad_token_id, after which position ids start")
        most -= pad + 1
    if shape.vocabulary > settings.vocab_size or shape.length > most:
        raise UserError(
            f"{path} has {settings.vocab_size} tokens and reads texts of {most}, but the data have {shape.vocabulary}"
            f" tokens and texts of up to {shape.length}: set data.tokenizer to it, or data.length"
        )
    if pad is not None and pad != shape.pad:
        raise UserError(f"{path} pads with token {pad}, but the data with {shape.pad}: set data.tokenizer to it")
    if shape.tokenizer == TRAINED:
        raise UserError(f"the tokenizer was trained on the data, but {path} has other tokens: set data.tokenizer to it")
    if shape.tokenizer is not None and _own_tokens(path) not in (None, shape.tokenizer):
        raise UserError(f"the tokens of the data are not those of the tokenizer in {path}: set data.tokenizer to it")


def _own_tokens(path: Path) -> str | None:
    """Return the fingerprint of the tokenizer in the encoder's folder, None if there is none."""
    files = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
    return _fingerprint(path, files[0].stat().st_mtime_ns) if files else None


@lru_cache(maxsize=8)
def _fingerprint(path: Path, _changed: int) -> str:
    return fingerprint(path)


def check_files(path: Path) -> None:
    """Raise UserError if the weights are not safetensors of a floating-point type."""
    if (path / "adapter_config.json").is_file():
        raise UserError(f"path={path} contains an adapter (adapter_config.json); merge it into its model and save that")
    for file in _files(path):
        try:
            with safe_open(file, "pt") as tensors:
                kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} is damaged and cannot be loaded ({_line(error)}); copy it again") from None
        for name, kind in kinds.items():
            if kind not in FLOATS and not name.endswith("_ids"):  # old versions of transformers saved position_ids
                raise UserError(f"{file}: tensor {name} is {kind}, not one of {', '.join(FLOATS)}; convert it")


def _files(path: Path) -> list[Path]:
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        parts = json_object(path / INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise UserError(f"{path / INDEX} has no weight_map of file names")
        names = sorted({str(name) for name in parts.values()})
        for name in names:
            if name != Path(name).name or not (path / name).is_file():
                raise UserError(f"{path / INDEX} names {name!r}, which is not a file in the folder")
        return [path / name for name in names]
    others = sorted(file.name for end in FOREIGN for file in path.glob(f"*.{end}"))
    if not others:
        raise UserError(f"path={path} has a config.json but no weights ({WEIGHTS}); nothing is downloaded")
    raise UserError(
        f"path={path} has its weights in {others[0]}, which is not read (a pickle may run code); if you trust it,"
        " convert it once: python -c 'import sys; from transformers import AutoModel as A;"
        f" A.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])' {path}"
    )


def _weights(path: Path, settings: PretrainedConfig) -> PreTrainedModel:
    """Return the encoder with its weights in float32; raises UserError if they do not match `settings`."""
    present = _layers_of(path, settings)
    encoder, unexpected = read_weights(path, settings, attn_implementation="eager")
    for name in unexpected:
        found = LAYER.search(name)
        if found and not settings.num_hidden_layers <= int(found[1]) < present:
            raise UserError(f"path={path} has the tensor {name}, which does not match its config.json")
    return encoder


def read_weights(path: Path, settings: PretrainedConfig, **how: Any) -> tuple[PreTrainedModel, list[str]]:
    """Return a model with its weights in float32, and the tensors of the files that it has not.

    `how` is passed to from_pretrained(). Raises UserError if a tensor is missing or not finite.
    """
    model, report = AutoModel.from_pretrained(
        path,
        config=settings,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **how,
    )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"path={path}: {len(missing)} tensors of its config.json are missing, first {missing[0]}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"path={path}: the tensor {name} contains NaN or infinity")
    return model, sorted(report["unexpected_keys"])


def _layers_of(path: Path, settings: PretrainedConfig) -> int:
    """Return the number of layers in the folder's config.json, whose key depends on the family."""
    raw = json_object(path / "config.json")
    name = settings.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return int(raw.get(name, raw.get("num_hidden_layers", type(settings)().num_hidden_layers)))


def _check_run(encoder: PreTrainedModel) -> None:
    """Raise UserError if a text of two tokens does not give a hidden state and an attention map of every layer."""
    settings = encoder.config
    with torch_scope(0, "check of an encoder"), torch.no_grad():
        ids = torch.tensor([[token for token in range(3) if token != settings.pad_token_id][:2]])
        encoder.train()
        out = encoder(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, output_attentions=True)
    hidden, maps = out.hidden_states or (), out.attentions or ()
    layers, width, heads = settings.num_hidden_layers, settings.hidden_size, settings.num_attention_heads
    complete = [tuple(layer.shape) for layer in hidden[1:]] == [(1, 2, width)] * layers
    complete &= [tuple(layer.shape) for layer in maps] == [(1, heads, 2, 2)] * layers
    if not complete or not torch.allclose(torch.stack(maps).sum(-1), torch.ones(()), atol=1e-4):
        raise UserError(f"this {settings.model_type} does not give {layers} hidden states and complete attention maps")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
