"""The structures of the C step as `ctypes` sees them, field for field, and the signatures of its functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from typing import ClassVar

LORA_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
"""Order of a layer's linears in the table of adapters."""


class CSegment(Structure):
    """Tiles of one width in bits; see gemm.h."""

    _fields_: ClassVar = [("data", c_void_p), ("first_tile", c_int32), ("bits", c_int32)]


class CMatrix(Structure):
    """A packed matrix; see gemm.h."""

    _fields_: ClassVar = [
        ("segment", CSegment * 3),
        ("num_segments", c_int32),
        ("tiles", c_int32),
        ("groups", c_int32),
        ("unused", c_int32),
    ]


class CLora(Structure):
    """One adapted linear; rank 0 is none."""

    _fields_: ClassVar = [("a", c_void_p), ("b", c_void_p), ("rank", c_int32), ("b_stride", c_int32)]


class CLayer(Structure):
    """One layer; a pointer that is NULL is a part that the family does not have."""

    _fields_: ClassVar = [
        *((name, CMatrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm")),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "qkv_bias", "cosine", "sine")),
        ("window", c_int32),
        ("unused", c_int32),
    ]


class CModel(Structure):
    """A model and its pool."""

    _fields_: ClassVar = [
        *((name, c_int32) for name in ("num_layers", "hidden", "hidden_p", "inner_p", "num_heads", "num_kv_heads")),
        *((name, c_int32) for name in ("head_dim", "vocab", "block_size", "num_blocks", "max_positions", "kv_int8")),
        *((name, c_int32) for name in ("gelu", "num_slots")),
        *((name, c_float) for name in ("eps", "attention_scale", "embedding_scale", "unused")),
        ("final_norm", c_void_p),
        ("embedding", CMatrix),
        ("head", CMatrix),
        *((name, c_void_p) for name in ("layers", "k", "v", "k_scale", "v_scale", "loras", "loaded")),
    ]


class CBatch(Structure):
    """One step; see `batch.Batch`."""

    _fields_: ClassVar = [
        *((name, c_int32) for name in ("num_tokens", "num_sequences", "table_width", "num_logits")),
        *((name, c_void_p) for name in ("token_ids", "positions", "slots", "starts", "lengths", "tables")),
        *((name, c_void_p) for name in ("logit_rows", "adapters", "logits", "greedy", "hidden")),
    ]


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the library's functions their signatures, and see that both sides mean the same structures."""
    library.mw_isa.restype = c_char_p
    library.mw_tile_bytes.argtypes = [c_int, c_int]
    library.mw_tile_bytes.restype = c_int64
    library.mw_pack.argtypes = [c_void_p, *[c_int] * 5, c_void_p, *[c_int] * 3, c_int64]
    library.mw_new.argtypes = [POINTER(CModel), c_int]
    library.mw_new.restype = c_void_p
    library.mw_step.argtypes = [c_void_p, POINTER(CBatch)]
    library.mw_free.argtypes = [c_void_p]
    library.mw_free.restype = None
    theirs = (c_int64 * 5)()
    library.mw_sizes.argtypes = [c_void_p]
    library.mw_sizes.restype = None
    library.mw_sizes(theirs)
    ours = [ctypes.sizeof(kind) for kind in (CMatrix, CLayer, CModel, CBatch, CLora)]
    assert list(theirs) == ours, f"structures differ: {list(theirs)} in C, {ours} here"
    return library
