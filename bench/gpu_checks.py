"""Is the CUDA backend right on this GPU: kernels against float64, whole models against transformers, ways of computing
the same thing against each other. Every check gives a relative error ‖out − reference‖ / ‖reference‖ and a bound.

Called by `gpu_engine.py`; inputs are fresh random numbers, outputs are filled with NaN before each call.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_kernels import DIM, HEADS, KV_HEADS, decode_case, prefill_case
from midwatch import results
from midwatch.engine.batch import Batch
from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.cuda import attention, kernels, linear
from midwatch.engine.cuda.backend import CudaBackend
from midwatch.settings import EngineSettings

PROMPT, BLOCK = 90, 16


def rows() -> list[results.Row]:
    """All checks, worst error of each over its cases."""
    found: list[results.Row] = []

    def add(name: str, errors: list[float], bound: float, note: str = "") -> None:
        row = results.row(name, [max(errors)], "relative error", target=bound, direction="at_most", note=note)
        found.append(row)
        print(f"check {name}: {max(errors):.2e} (bound {bound:.0e}) {'ok' if row.holds else 'WRONG'}", flush=True)

    add("kernels bf16: norms, activation, linear layers", _small_kernels(), 1e-2, "against float64")
    add("decode attention bf16", [_decode_error(*case) for case in _decode_cases()], 1e-2, "against float64")
    add("prefill attention bf16", [_prefill_error(page, window) for page in (16, 64) for window in (0, 100)], 1e-2)
    for family in ("llama", "qwen3", "gemma3_text"):
        whole, decoded, _ = _against_transformers(family, "float32")
        add(f"{family} float32 beside transformers", [whole, decoded], 1e-4, "logits of a prompt and of decoding it")
    for family in ("llama", "qwen3"):
        whole, decoded, theirs = _against_transformers(family, "bfloat16")
        note = f"both against transformers in float32; transformers in bfloat16 is {theirs:.2e} away"
        add(f"{family} bfloat16 beside transformers", [whole, decoded], 1.5 * theirs, note)
    for name, errors, bound in _same_by_every_way():
        add(name, errors, bound)
    return found


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative error; not a number is infinite."""
    value = float((out.double() - reference.double()).norm() / reference.double().norm())
    return float("inf") if math.isnan(value) else value


def _nan(*shape: int) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=torch.bfloat16, device="cuda")


def _small_kernels() -> list[float]:
    x = torch.randn(5, 4096, dtype=torch.bfloat16, device="cuda")
    residual, norm = torch.randn_like(x), torch.rand(4096, device="cuda")
    total = (x.float() + residual.float()).to(torch.bfloat16).double()
    out = _nan(5, 4096)
    kernels.add_norm(x, residual, norm, 1e-5, out)
    expected = total * torch.rsqrt((total * total).mean(-1, keepdim=True) + 1e-5) * norm.double()
    errors = [error(out, expected), error(residual, total)]
    gate_up, act = torch.randn(5, 2 * 3000, dtype=torch.bfloat16, device="cuda"), _nan(5, 3000)
    gate, up = gate_up.double().chunk(2, 1)
    for activation, expected in (
        ("silu", torch.nn.functional.silu(gate) * up),
        ("gelu_tanh", torch.nn.functional.gelu(gate, approximate="tanh") * up),
    ):
        kernels.activate(gate_up, act, activation)
        errors.append(error(act, expected))
    bits: tuple[linear.Bits, ...] = (16, 8, 4)
    for kind in bits:
        layer = linear.make_linear(torch.randn(2048, 4096, dtype=torch.bfloat16, device="cuda") * 0.02, kind)
        weight = layer.dense(torch.float32).double()
        for m in (1, 3, 8, 16, 100):
            x = torch.randn(m, 4096, dtype=torch.bfloat16, device="cuda")
            errors.append(error(layer(x), x.double() @ weight.T))
            if m > 16:
                continue
            normed = x.double()
            options: dict[str, Any] = {}
            if kind == 16 or m == 1:
                normed = normed * torch.rsqrt((normed**2).mean(-1, keepdim=True) + 1e-5) * norm.double()
                options = {"norm_K": norm, "eps": 1e-5}
            gate, up = (normed @ weight.T).chunk(2, 1)
            out = _nan(m, 1024)
            layer.fused(x, out, activation="silu", **options)
            errors.append(error(out, torch.nn.functional.silu(gate) * up))
            out = torch.randn(m, 2048, dtype=torch.bfloat16, device="cuda")
            expected = out.double() + x.double() @ weight.T
            layer.fused(x, out, add=True)
            errors.append(error(out, expected))
    logits = torch.randn(7, 128256, device="cuda")
    ids = torch.zeros(7, dtype=torch.int64, device="cuda")
    kernels.argmax(logits, ids)
    errors.append(float((ids != logits.argmax(-1)).sum()))
    return errors


def _decode_cases() -> list[tuple[int, int, int, int]]:
    return [(page, window, splits, 777) for page in (16, 32, 64, 256) for window in (0, 100) for splits in (1, 8)]


def _decode_error(page: int, window: int, splits: int, context: int) -> float:
    queries, pool, plan = decode_case(5, context, page, splits)
    plan.lengths_S.copy_(torch.tensor([context, 1, 17, 400, context - 1]))
    out = _nan(5, HEADS, DIM)
    attention.decode_attention(queries, pool[0], pool[1], out, plan, scale=DIM**-0.5, window=window)
    worst = 0.0
    for row, length in enumerate(plan.lengths_S.tolist()):
        expected = _attention(queries[row : row + 1], pool, plan.tables_SB[row], length, window)
        worst = max(worst, error(out[row : row + 1], expected))
    return worst


def _prefill_error(page: int, window: int) -> float:
    counts, lengths = (300, 1, 64, 129), (300, 555, 700, 129)
    queries, pool, plan = prefill_case(counts, lengths, page)
    out = _nan(sum(counts), HEADS, DIM)
    attention.attend(queries, pool[0], pool[1], out, plan, scale=DIM**-0.5, window=window)
    worst, start = 0.0, 0
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        expected = _attention(queries[start : start + count], pool, plan.tables_SB[row], length, window)
        worst = max(worst, error(out[start : start + count], expected))
        start += count
    return worst


def _attention(q_TC: torch.Tensor, pool: torch.Tensor, table: torch.Tensor, length: int, window: int) -> torch.Tensor:
    """float64 attention of the last rows over a sequence's pages, put end to end."""
    count = q_TC.shape[0]
    k, v = (side[table.long()].flatten(0, 1)[:length].double().repeat_interleave(HEADS // KV_HEADS, 1) for side in pool)
    q = q_TC.view(count, -1, DIM)[:, :HEADS].double()
    scores = torch.einsum("thd,lhd->htl", q, k) * DIM**-0.5
    position = torch.arange(length - count, length, device="cuda")[:, None]
    key = torch.arange(length, device="cuda")[None]
    hidden = (key > position) | ((key <= position - window) if window else torch.zeros_like(key > position))
    return torch.einsum("htl,lhd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def _model(family: str, dtype: str) -> Any:
    """A random transformers model: tiny for float32, of eight layers for bfloat16."""
    import transformers

    big = dtype == "bfloat16"
    shape = {
        "vocab_size": 1000,
        "hidden_size": 1024 if big else 64,
        "intermediate_size": 2816 if big else 96,
        "num_hidden_layers": 8 if big else 3,
        "num_attention_heads": 16 if big else 4,
        "num_key_value_heads": 4 if big else 2,
        "head_dim": 64 if big else 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family == "gemma3_text",
    }
    if family == "gemma3_text":
        shape |= {"sliding_window": 32, "query_pre_attn_scalar": 16}
    config = transformers.AutoConfig.for_model(family, **shape)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().cuda().eval()
    with torch.no_grad():  # logits of a freshly made model are nearly flat
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    return model


def _against_transformers(family: str, dtype: str) -> tuple[float, float, float]:
    """(error of a prompt's logits, error of decoding its last ten tokens, error of transformers in bfloat16)."""
    model = _model(family, dtype)
    settings = EngineSettings(dtype=dtype, attention="triton", max_num_seqs=8)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        backend = CudaBackend(open_checkpoint(Path(folder)), settings, max_model_len=256, num_blocks=40)
    ids = torch.randint(0, 1000, (1, PROMPT), device="cuda")
    with torch.no_grad():
        expected = model(ids).logits[0]
        theirs = error(model.to(torch.bfloat16)(ids).logits[0], expected)
    tokens, blocks = ids[0].tolist(), np.random.default_rng(0).permutation(40)[: -(-PROMPT // BLOCK)]
    whole = error(backend.forward(make_batch([tokens], [0], [blocks], [PROMPT])).logits_RV, expected)
    decoded = []
    for end in range(PROMPT - 9, PROMPT + 1):
        decoded.append(backend.forward(make_batch([tokens], [end - 1], [blocks], [end])).logits_RV.clone())
    last = error(torch.cat(decoded), expected[-10:])
    backend.close()
    return whole, last, theirs


def _same_by_every_way() -> list[tuple[str, list[float], float]]:
    """A graph and its launches one by one, shuffled and ordered pages, chunks and the whole: the same numbers."""
    with tempfile.TemporaryDirectory() as folder:
        _model("llama", "bfloat16").save_pretrained(folder)
        settings = EngineSettings(attention="triton", max_num_seqs=16)
        backend = CudaBackend(open_checkpoint(Path(folder)), settings, max_model_len=512, num_blocks=200)
    random = np.random.default_rng(1)
    tokens = [random.integers(0, 1000, PROMPT).tolist() for _ in range(11)]
    width = -(-PROMPT // BLOCK)
    ordered = list(np.arange(11 * width).reshape(11, width))
    shuffled = list(random.permutation(200)[: 11 * width].reshape(11, width))
    zeros, ends, lasts = [0] * 11, [PROMPT] * 11, [PROMPT - 1] * 11
    contiguous = backend.forward(make_batch(tokens, zeros, ordered, ends)).logits_RV.clone()
    paged = backend.forward(make_batch(tokens, zeros, shuffled, ends)).logits_RV.clone()
    ways = [("shuffled pages give what ordered pages give", [error(paged, contiguous)], 0.0)]
    pieces = []
    for begin, end in ((0, 17), (17, 64), (64, PROMPT)):
        batch = make_batch(tokens, [begin] * 11, shuffled, [end] * 11)
        pieces.append(backend.forward(batch).logits_RV.view(11, end - begin, -1).clone())
    chunked = torch.cat(pieces, 1).flatten(0, 1)
    ways.append(("chunks give what the whole prompt gives", [error(chunked, contiguous)], 1e-2))
    errors, exact = [], []
    for count in (1, 3, 8, 11):
        batch = make_batch(tokens[:count], lasts[:count], shuffled[:count], ends[:count])
        replayed = backend.forward(batch)
        logits, greedy = replayed.logits_RV.clone(), replayed.greedy_R
        assert greedy is not None
        exact.append(float((greedy != logits.argmax(-1)).sum()))
        step, _ = backend._step(batch)
        residual, delta = backend.decoder.run(step, backend.previous_ids)
        eager = torch.empty_like(logits)
        backend.decoder.weights.head.logits(backend.decoder.final_norm(residual, delta), eager)
        exact.append(error(logits, eager))
        errors.append(error(logits, contiguous.view(11, PROMPT, -1)[:count, -1]))
    ways.append(("a replayed graph gives what its launches give", exact, 1e-3))
    ways.append(("decoding gives what the whole prompt gives", errors, 2e-2))  # bfloat16 itself is 1.5e-2 away
    backend.close()
    return ways


def make_batch(tokens: list[list[int]], begins: list[int], blocks: list[Any], ends: list[int]) -> Batch:
    """A step that computes positions `begins[s]` to `ends[s]` of each sequence, logits for every row."""
    counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
    places = [np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)]
    slots = [table[place // BLOCK] * BLOCK + place % BLOCK for table, place in zip(blocks, places, strict=True)]
    ids = [row[begin:end] for row, begin, end in zip(tokens, begins, ends, strict=True)]
    return Batch(
        token_ids=np.concatenate(ids).astype(np.int32),
        positions=np.concatenate(places).astype(np.int32),
        slots=np.concatenate(slots).astype(np.int32),
        starts=np.cumsum([0, *counts]).astype(np.int32),
        lengths=np.array(ends, dtype=np.int32),
        block_tables=np.stack(blocks).astype(np.int32),
        logit_rows=np.arange(sum(counts), dtype=np.int32),
        adapters=np.full(len(tokens), -1, dtype=np.int32),
    )
