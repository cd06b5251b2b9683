"""The section `compression`: the codec, its energy threshold, its budget and its options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd_mpi.common.options import WIDE
from fedkd_mpi.common.registry import known_or_own
from fedkd_mpi.config.codecs import BITS, MOST_OF_EDEN
from fedkd_mpi.config.sections import BYTES, MANY, PART, Section


def _schedule(name: str) -> str:
    return known_or_own(name, ("linear",))


class CompressionConfig(Section):
    codec: str = Field(
        "svd",
        pattern=PART,
        description="how updates are compressed (docs/codecs.md)",
    )
    t_start: float = Field(0.95, gt=0, le=1, description="energy threshold of the first round")
    t_end: float = Field(0.98, gt=0, le=1, description="energy threshold of the last round")
    error_feedback: Literal["none", "ef", "ef21"] = Field(
        "none", description="send compression errors later; up and down"
    )
    energy_scope: Literal["tensor", "model"] = Field(
        "tensor", description="the threshold applies to each matrix, or to the whole update"
    )
    byte_budget: int | None = Field(
        None, ge=1, le=BYTES, description="largest payload per message; determines the threshold"
    )
    run_budget: int | None = Field(
        None, ge=1, le=BYTES, description="largest sum of uplink and downlink of the run, headers included"
    )
    budget_growth: float | None = Field(
        None, ge=1e-6, le=1e6, description="ratio of the last round's share of run_budget to the first's; default 1"
    )
    warm_start: bool | None = Field(
        None, description="svd: start from the last round's directions; faster, K a few % above the smallest"
    )
    bits: Annotated[int, Field(ge=1, le=32)] | Annotated[float, Field(gt=0, le=MOST_OF_EDEN)] | None = Field(
        None,
        description="per number; quantize: 4, 8 (default) or 16; topk: 1, 2, 8 or 32 (default) of the entries sent;"
        " eden: any up to 4, default 1; dadaquant: 2 to 15, of the finest levels, default 8",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MANY,
        description="dadaquant: rounds without a lower loss after which the levels double; default 5",
    )
    error_bound: float | None = Field(
        None, gt=0, lt=1, description="sz3: largest error of an entry / range of its tensor; default 0.01"
    )
    density: float | None = Field(None, gt=0, le=1, description="topk, fetchsgd: share of entries; default 0.01")
    rank: int | None = Field(None, ge=1, le=WIDE, description="powersgd: rank; default 4")
    sketch_rows: int | None = Field(None, ge=1, le=1000, description="fetchsgd: hash functions; default 5")
    schedule: Annotated[str, AfterValidator(_schedule)] = Field(
        "linear", pattern=PART, description="of the energy threshold: linear, or package.module:function"
    )
    options: dict[str, Any] | None = Field(
        None, description="options of an own codec; compression.NAME is short for compression.options.NAME"
    )
    sketch_share: float | None = Field(None, gt=0, le=1, description="fetchsgd: sketch size / update size; default 0.5")

    @model_validator(mode="before")
    @classmethod
    def _own_codecs_have_options(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or ":" not in str(tree.get("codec")):
            return tree
        own = {key: value for key, value in tree.items() if key not in cls.model_fields}
        if not own:
            return tree
        kept = {key: value for key, value in tree.items() if key not in own}
        return kept | {"options": {**(tree.get("options") or {}), **own}}

    @model_validator(mode="after")
    def _options_belong_to_own_codecs(self) -> CompressionConfig:
        if self.options is not None and ":" not in self.codec:
            raise ValueError(f"compression.options belongs to an own codec, not to {self.codec}")
        return self

    @model_validator(mode="after")
    def _rising(self) -> CompressionConfig:
        if self.t_start > self.t_end:
            raise ValueError(f"compression.t_start ({self.t_start}) must not exceed compression.t_end ({self.t_end})")
        return self

    @model_validator(mode="after")
    def _keys_belong_to_the_codec(self) -> CompressionConfig:
        owners = {
            "warm_start": ("svd",),
            "bits": tuple(BITS),
            "density": ("topk", "fetchsgd"),
            "rank": ("powersgd",),
            "patience": ("dadaquant",),
            "error_bound": ("sz3",),
            "sketch_rows": ("fetchsgd",),
            "sketch_share": ("fetchsgd",),
            "byte_budget": ("svd", "rdsvd"),
            "run_budget": ("svd", "rdsvd"),
        }
        for key, codecs in owners.items():
            if getattr(self, key) is not None and self.codec not in codecs and ":" not in self.codec:
                named = " or ".join(codecs)
                raise ValueError(f"compression.{key} belongs to compression.codec={named}, not {self.codec}")
        if self.bits is not None and (allowed := BITS.get(self.codec, ())) and self.bits not in allowed:
            named = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
            raise ValueError(f"compression.bits={self.bits}: compression.codec={self.codec} has {named}")
        if self.codec == "eden" and (self.bits or 1) > MOST_OF_EDEN:
            raise ValueError(f"compression.bits={self.bits}: compression.codec=eden has at most {MOST_OF_EDEN}")
        if self.byte_budget is not None and self.run_budget is not None:
            raise ValueError("give one of compression.byte_budget (per message) and compression.run_budget (per run)")
        if self.budget_growth is not None and self.run_budget is None:
            raise ValueError("compression.budget_growth divides compression.run_budget among rounds; give that too")
        if self.energy_scope == "model" and (self.codec != "rdsvd" or self.error_feedback == "none"):
            raise ValueError(
                "compression.energy_scope=model needs compression.codec=rdsvd and compression.error_feedback=ef or"
                " ef21: layers with little energy would never be sent"
            )
        if self.codec == "fetchsgd" and self.error_feedback != "none":
            raise ValueError("compression.codec=fetchsgd keeps its own residual; set compression.error_feedback=none")
        return self
