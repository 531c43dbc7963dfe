"""The CPU backend: a step in one call of the C step, over weights that it packed and a pool that it owns.

`forward` lays pointers into a structure and calls; everything between is C (`step.c`). A row's result is bit for bit
the same whatever else is in the batch, however the prompt was chunked, and however many threads work.
Legend: T tokens of the step, S sequences, R rows with logits, V vocabulary, K hidden, D head size.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from midwatch.engine.batch import Batch, Forward
from midwatch.engine.checkpoint import Checkpoint, ModelConfig, tensor_shape
from midwatch.engine.cores import usable_cores
from midwatch.engine.cpu import build
from midwatch.engine.cpu.pack import GROUP, TILE, Arena, Packer, capacity_bytes, up_to
from midwatch.engine.cpu.structs import LORA_LINEARS, CBatch, CLayer, CLora, CMatrix, CModel, bind
from midwatch.engine.lora import Adapter, check_adapter
from midwatch.engine.memory import available_cpu_bytes, kv_blocks, kv_bytes_per_token
from midwatch.engine.quantize import dequantize
from midwatch.engine.rope import rotation_table
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings

Float32 = npt.NDArray[np.float32]

MAX_WINDOWS = 8
_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
_WRONG = {
    -1: "there is no memory for a step of this size",
    1: "a token id is outside the vocabulary",
    2: "a position is outside the context, or is not the sequence's next",
    3: "a slot is outside the pool",
    4: "the starts do not cut the tokens into sequences",
    5: "a length is less than the new tokens, or more than the context or the block table holds",
    6: "a block is outside the pool",
    7: "the rows with logits are not ascending rows of the step",
    8: "no adapter is loaded in a slot that a sequence names",
}


class CpuBackend:
    """See `batch.Backend`. Needs a C compiler (see `build.why_unavailable`) and a head size that 16 divides."""

    name = "native"

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: EngineSettings,
        *,
        max_model_len: int,
        num_blocks: int | None = None,
        kernel_dir: Path | None = None,
        compiler_flags: Sequence[str] = (),
    ) -> None:
        self.config = config = checkpoint.config
        self.device = torch.device("cpu")
        self.block_size = settings.block_size
        if (reason := why_not_for(config)) is not None:
            raise ModelError(f"The C step cannot run this model: {reason}", "Set engine.kernels to torch.")
        self._library = bind(build.load(kernel_dir, flags=compiler_flags))
        self.isa = self._library.mw_isa().decode()
        self._max_model_len = max_model_len
        self._int8_kv = settings.kv_dtype == "int8"
        self._vectors: list[Float32] = []
        self.weight_bytes = 0
        self._model = CModel()
        self._load(checkpoint, settings)
        bytes_per_head = config.head_dim + 4 if self._int8_kv else config.head_dim * 2
        self.kv_bytes_per_token = kv_bytes_per_token(config, bytes_per_head)
        self.num_blocks = num_blocks or kv_blocks(
            self.kv_bytes_per_token, settings, free_bytes=available_cpu_bytes(), max_model_len=max_model_len
        )
        self._make_pool()
        self._adapters: dict[int, list[Float32]] = {}
        self._loras = (CLora * max(1, settings.max_adapters * config.num_layers * len(LORA_LINEARS)))()
        self._model.loras = ctypes.addressof(self._loras)
        self._loaded = np.zeros(max(1, settings.max_adapters), dtype=np.uint8)
        self._model.loaded, self._model.num_slots = self._loaded.ctypes.data, settings.max_adapters
        self._batch = CBatch()
        self._logits_RV = torch.empty(settings.max_num_seqs, config.vocab_size)
        self._greedy_R = torch.empty(settings.max_num_seqs, dtype=torch.int64)
        step = self._library.mw_new(ctypes.byref(self._model), settings.threads or usable_cores())
        if step is None:
            raise ModelError("There is no memory for the buffers of a step.", "Lower engine.max_model_len.")
        self._step: int | None = step
        self._free = weakref.finalize(self, self._library.mw_free, step)

    # ---- loading ----

    def _load(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        config, model = self.config, self._model
        names = ["embedding"] + ["head"] * (not config.tied_embeddings)
        shapes = [tensor_shape(config, name) for name in names]
        shapes += [tensor_shape(config, name) for name in _LINEARS] * config.num_layers
        arena = Arena(capacity_bytes(self._library, shapes), huge_pages=True)
        self._arenas = [arena]
        packer = Packer(self._library, arena, settings.quantization)
        model.num_layers, model.hidden = config.num_layers, config.hidden_size
        model.hidden_p, model.inner_p = up_to(config.hidden_size, GROUP), up_to(config.intermediate_size, GROUP)
        model.num_heads, model.num_kv_heads = config.num_heads, config.num_kv_heads
        model.head_dim, model.vocab = config.head_dim, config.vocab_size
        model.max_positions, model.gelu = self._max_model_len, config.activation == "gelu_tanh"
        model.eps, model.attention_scale = config.norm_eps, config.attention_scale
        model.embedding_scale = config.embedding_scale
        model.final_norm = self._vector(checkpoint, "final_norm")
        model.embedding, head_bytes = packer.stacked([checkpoint.tensor("embedding")], keep_eight=True)
        model.head = model.embedding
        if not config.tied_embeddings:
            model.head, head_bytes = packer.stacked([checkpoint.tensor("head")], keep_eight=True)
        self.weight_bytes += head_bytes
        tables: dict[tuple[float, tuple[float, ...]], tuple[int, int]] = {}
        self._layers = (CLayer * config.num_layers)()
        for index in range(config.num_layers):
            self._load_layer(checkpoint, packer, index, tables)
        model.layers = ctypes.addressof(self._layers)
        checkpoint.check_all_taken()

    def _load_layer(
        self,
        checkpoint: Checkpoint,
        packer: Packer,
        index: int,
        tables: dict[tuple[float, tuple[float, ...]], tuple[int, int]],
    ) -> None:
        config, layer, prefix = self.config, self._layers[index], f"layers.{index}."
        q, k, v, o, gate, up, down = (checkpoint.tensor(prefix + name) for name in _LINEARS)
        matrices: dict[str, tuple[CMatrix, int]] = {
            "qkv": packer.stacked([q, k, v]),
            "o": packer.stacked([o]),
            "gate_up": packer.interleaved(gate, up),
            "down": packer.stacked([down]),
        }
        for name, (matrix, size) in matrices.items():
            setattr(layer, name, matrix)
            self.weight_bytes += size
        norms = ["attn_norm", "mlp_norm"]
        norms += ["post_attn_norm", "post_mlp_norm"] * config.post_norms + ["q_norm", "k_norm"] * config.qk_norm
        for name in norms:
            setattr(layer, name, self._vector(checkpoint, prefix + name))
        if config.qkv_bias:
            layer.qkv_bias = self._vector(checkpoint, *(f"{prefix}{name}_bias" for name in "qkv"))
        layer.window = config.layer_windows[index]
        rope = (config.layer_rope_bases[index], () if layer.window else config.rope_factors)
        if rope not in tables:
            rotation_P1d = rotation_table(self._max_model_len, config.head_dim, *rope)
            tables[rope] = (self._keep(rotation_P1d.real.numpy()), self._keep(rotation_P1d.imag.numpy()))
        layer.cosine, layer.sine = tables[rope]

    def _vector(self, checkpoint: Checkpoint, *names: str) -> int:
        """Address of the numbers of vectors, one after the other, padded with zeros to whole groups."""
        parts = [dequantize(checkpoint.tensor(name), torch.float32)[0].numpy() for name in names]
        numbers = np.concatenate(parts)
        padded = np.zeros(up_to(numbers.size, GROUP), dtype=np.float32)
        padded[: numbers.size] = numbers
        return self._keep(padded)

    def _keep(self, numbers: Float32) -> int:
        self._vectors.append(np.ascontiguousarray(numbers, dtype=np.float32))
        return self._vectors[-1].ctypes.data

    def _make_pool(self) -> None:
        """Keys and values of all layers, [layers, blocks, bytes of a block] each; untouched pages take no memory."""
        config, model = self.config, self._model
        vectors = config.num_kv_heads * self.block_size
        sizes = {"k": vectors * config.head_dim * (1 if self._int8_kv else 2)}
        sizes["v"] = sizes["k"]
        if self._int8_kv:
            sizes |= {"k_scale": vectors * 4, "v_scale": vectors * 4}
        self._pools: list[npt.NDArray[np.uint8]] = []
        for name, block_bytes in sizes.items():
            # The last keys of a pool are read 16 at a time, past its end: one line more than is written.
            arena = Arena(config.num_layers * self.num_blocks * block_bytes + 64, huge_pages=False)
            self._arenas.append(arena)
            setattr(model, name, arena.take(config.num_layers * self.num_blocks * block_bytes))
            blocks = arena.bytes[: config.num_layers * self.num_blocks * block_bytes]
            self._pools.append(blocks.reshape(config.num_layers, self.num_blocks, block_bytes))
        model.block_size, model.num_blocks, model.kv_int8 = self.block_size, self.num_blocks, self._int8_kv

    # ---- a step ----

    def forward(self, batch: Batch) -> Forward:
        """Compute a step. `logits_RV` and `greedy_R` lie in buffers that the next call overwrites."""
        if self._step is None:
            raise ModelError("The backend is closed.")
        native = self._batch
        native.num_tokens, native.num_sequences = batch.token_ids.shape[0], batch.lengths.shape[0]
        native.table_width, native.num_logits = batch.block_tables.shape[1], batch.logit_rows.shape[0]
        num_tokens, num_sequences, num_logits = native.num_tokens, native.num_sequences, native.num_logits
        native.token_ids = _address(batch.token_ids, num_tokens)
        native.positions = _address(batch.positions, num_tokens)
        native.slots = _address(batch.slots, num_tokens)
        native.starts = _address(batch.starts, num_sequences + 1)
        native.lengths = _address(batch.lengths, num_sequences)
        native.tables = _address(batch.block_tables, num_sequences * native.table_width)
        native.logit_rows = _address(batch.logit_rows, num_logits)
        native.adapters = _address(batch.adapters, num_sequences)
        if num_logits > self._logits_RV.shape[0]:
            self._logits_RV = torch.empty(num_logits, self.config.vocab_size)
            self._greedy_R = torch.empty(num_logits, dtype=torch.int64)
        hidden_TK = torch.empty(num_tokens, self.config.hidden_size) if batch.want_hidden else None
        native.logits, native.greedy = self._logits_RV.data_ptr(), self._greedy_R.data_ptr()
        native.hidden = None if hidden_TK is None else hidden_TK.data_ptr()
        wrong = self._library.mw_step(self._step, native)
        if wrong:
            raise (MemoryError if wrong < 0 else ValueError)(f"The step cannot be computed: {_WRONG[wrong]}.")
        return Forward(
            logits_RV=self._logits_RV[:num_logits], greedy_R=self._greedy_R[:num_logits], hidden_TK=hidden_TK
        )

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) before the next `forward`; all sources are read first."""
        if pairs:
            sources, destinations = np.array(pairs, dtype=np.int64).T
            for pool in self._pools:
                pool[:, destinations] = pool[:, sources]

    # ---- adapters ----

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """Make a LoRA adapter ready under a slot. Raises `ModelError` if it is for another base."""
        config = self.config
        check_adapter(adapter, config)
        if not 0 <= slot < self._model.num_slots:
            raise ModelError(
                f"Adapter {adapter.name} is to be slot {slot} of {self._model.num_slots}.", "Raise engine.max_adapters."
            )
        self.unload_adapter(slot)
        kept = self._adapters[slot] = []
        self._loaded[slot] = 1
        for (layer, linear), pair in adapter.pairs.items():
            rank, columns = pair.a.shape
            a = np.zeros((rank, up_to(columns, GROUP)), dtype=np.float32)
            a[:, :columns] = pair.a.float().numpy()
            b = np.zeros((rank, up_to(pair.b.shape[0], 2 * TILE)), dtype=np.float32)
            b[:, : pair.b.shape[0]] = pair.b.float().numpy().T
            kept += [a, b]
            entry = self._loras[self._lora_place(slot, layer, linear)]
            entry.a, entry.b, entry.rank, entry.b_stride = a.ctypes.data, b.ctypes.data, rank, b.shape[1]

    def unload_adapter(self, slot: int) -> None:
        """Forget the adapter of a slot; an empty slot is fine."""
        if self._adapters.pop(slot, None) is not None:
            self._loaded[slot] = 0
            for layer in range(self.config.num_layers):
                for linear in LORA_LINEARS:
                    self._loras[self._lora_place(slot, layer, linear)] = CLora()

    def _lora_place(self, slot: int, layer: int, linear: str) -> int:
        return (slot * self.config.num_layers + layer) * len(LORA_LINEARS) + LORA_LINEARS.index(linear)

    def close(self) -> None:
        """Stop the threads and let go of weights, keys and values. May be called twice."""
        self._step = None
        self._free()
        self._arenas.clear()
        self._pools.clear()
        self._logits_RV = self._greedy_R = torch.empty(0)


def why_not_for(config: ModelConfig) -> str | None:
    """Why the C step cannot run a model of this shape, in one sentence; None if it can."""
    if config.head_dim % TILE:
        return f"it wants a head size that {TILE} divides; this model's is {config.head_dim}."
    if len(set(config.layer_windows)) > MAX_WINDOWS:
        return f"it allows {MAX_WINDOWS} sizes of sliding windows; this model has more."
    return None


def _address(array: npt.NDArray[np.int32], count: int) -> int:
    """Where the numbers lie; C reads `count` of them."""
    if array.dtype != np.int32 or array.size != count or not array.flags.c_contiguous:
        raise ValueError(f"The step wants {count} contiguous int32; it got {array.size} of {array.dtype}.")
    address: int = array.__array_interface__["data"][0]
    return address
