"""The table of codecs, which configuration and codecs use."""

from __future__ import annotations

CODECS = {
    "svd": "fedkd_mpi.codecs.svd:Svd",
    "none": "fedkd_mpi.codecs.none:Raw",
    "rdsvd": "fedkd_mpi.codecs.rdsvd:RateDistortionSvd",
    "float16": "fedkd_mpi.codecs.quantize:Float16",
    "quantize": "fedkd_mpi.codecs.quantize:Quantize",
    "topk": "fedkd_mpi.codecs.topk:TopK",
    "powersgd": "fedkd_mpi.codecs.powersgd:PowerSgd",
    "fetchsgd": "fedkd_mpi.codecs.fetchsgd:FetchSgd",
    "submatrix": "fedkd_mpi.codecs.submatrix:Submatrix",
    "eden": "fedkd_mpi.codecs.eden:Eden",
    "sign": "fedkd_mpi.codecs.sign:Sign",
    "ternary": "fedkd_mpi.codecs.ternary:Ternary",
    "dadaquant": "fedkd_mpi.codecs.dadaquant:DAdaQuant",
    "sz3": "fedkd_mpi.codecs.sz3:Sz3",
}

# What `bits` may be for the codecs that have that key; of eden any number above 0 up to 4.
BITS: dict[str, tuple[int, ...]] = {
    "quantize": (4, 8, 16),
    "topk": (1, 2, 8, 32),
    "eden": (),
    "dadaquant": tuple(range(2, 16)),
}
MOST_OF_EDEN = 4
