"""Families of encoders that a local folder may hold: those that are read here, and why others are not."""

from __future__ import annotations

# model_type of config.json; True where positions begin after the padding id, as RoBERTa counts them.
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

_SPARSE = "its attention is sparse, and equation 5 compares whole maps"
_LEFT = "a decoder, in which a token sees only those before it"
_TWO = "an encoder with a decoder"
_CHARACTERS = "it reads characters, not a tokenizer's ids"
REASONS = {
    "big_bird": _SPARSE,
    "longformer": _SPARSE,
    "led": _SPARSE,
    "fnet": "it has no attention, whose maps equation 5 compares",
    "convbert": "its convolutions read the padding, so that a text's result depends on its neighbours",
    "canine": _CHARACTERS,
    "funnel": "its layers shorten the text, so that no token keeps a state of its own",
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
    """Return why the encoders of a `model_type` are not read, in one line, or None where they are."""
    if isinstance(family, str) and family in OFFSET:
        return None
    if not isinstance(family, str):
        return f"its config.json names no model_type; known are {', '.join(OFFSET)}"
    reason = f": {REASONS[family]}" if family in REASONS else ""
    return f"the family {family[:60]!r} is not read here{reason}; known are {', '.join(OFFSET)}"
