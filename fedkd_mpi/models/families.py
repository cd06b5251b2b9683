"""Families of encoders in local folders: the supported ones, and the reasons why others are not supported."""

from __future__ import annotations

# model_type of config.json; True if position ids start after the padding id, as in RoBERTa.
OFFSET = {
    "albert": False,
    "bert": False,
    "camembert": True,
    "data2vec-text": True,
    "deberta": False,
    "deberta-v2": False,
    "distilbert": False,
    "electra": False,
    "ernie": False,
    "megatron-bert": False,
    "mobilebert": False,
    "modernbert": False,
    "mpnet": True,
    "roberta": True,
    "roformer": False,
    "xlm-roberta": True,
}

_SPARSE = "its attention is sparse, but equation 5 compares complete maps"
_LEFT = "a decoder, in which a token attends only to earlier tokens"
_TWO = "an encoder with a decoder"
_CHARACTERS = "its input is characters, not the ids of a tokenizer"
REASONS = {
    "big_bird": _SPARSE,
    "longformer": _SPARSE,
    "led": _SPARSE,
    "fnet": "it has no attention maps, which equation 5 compares",
    "convbert": "its convolutions include the padding, so that the result of a text depends on the rest of the batch",
    "canine": _CHARACTERS,
    "funnel": "its layers shorten the text, so that tokens have no state of their own",
    "squeezebert": "it does not run without its pooler",
    "xlnet": "its attention has two streams and a memory",
    "yoso": "it has no attention maps of tokens",
    "nystromformer": "its attention is an approximation over landmarks",
    "gpt2": _LEFT,
    "gpt_neo": _LEFT,
    "gpt_neox": _LEFT,
    "llama": _LEFT,
    "mistral": _LEFT,
    "opt": _LEFT,
    "qwen2": _LEFT,
    "qwen3": _LEFT,
    "bart": _TWO,
    "mbart": _TWO,
    "mt5": _TWO,
    "pegasus": _TWO,
    "t5": _TWO,
}


def why_not(family: object) -> str | None:
    """Return in one line why the encoders of a `model_type` are not supported, or None if they are."""
    if isinstance(family, str) and family in OFFSET:
        return None
    if not isinstance(family, str):
        return f"its config.json has no model_type; supported are {', '.join(OFFSET)}"
    reason = f": {REASONS[family]}" if family in REASONS else ""
    return f"the family {family[:60]!r} is not supported{reason}; supported are {', '.join(OFFSET)}"
