"""The engine's backend on one CUDA GPU: a step in, logits out, nothing waited for.

A pure decode step replays a recorded graph (`graphs.py`); any other step launches its kernels one by one. `forward`
returns while the device still computes: the next step may be sent before this one's ids are read, since an id that is
not known yet is taken on the device from what `remember` was given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from midwatch.engine.batch import Batch, Forward
from midwatch.engine.checkpoint import Checkpoint, ModelConfig
from midwatch.engine.cuda.attention import Plan, Scratch, find_flash, num_splits, row_tiles
from midwatch.engine.cuda.decoder import Decoder, Step
from midwatch.engine.cuda.graphs import DecodeGraphs
from midwatch.engine.cuda.linear import Bits
from midwatch.engine.cuda.loading import Fetch, build, from_checkpoint, random_weights
from midwatch.engine.cuda.lora import GATHERED_MAX_ROWS, AdapterBank, AdapterRows
from midwatch.engine.cuda.staging import Staging
from midwatch.engine.lora import Adapter
from midwatch.engine.memory import MIB, kv_blocks, kv_bytes_per_token, step_tokens
from midwatch.errors import ModelError, SettingsError
from midwatch.settings import EngineSettings

PAGE_MULTIPLE = 16
BITS: dict[str, Bits] = {"auto": 16, "none": 16, "int8": 8, "int4": 4}
INTERPRETER_MULTIPROCESSORS = 2


class CudaBackend:
    """Implements `engine.batch.Backend`. `overlaps`: a step may be sent before the one before it was read."""

    name = "cuda"
    overlaps = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: EngineSettings,
        *,
        max_model_len: int,
        num_blocks: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Load weights, allocate the pool and record the decode graphs.

        Raises `SettingsError` for settings that this backend cannot serve, `ModelError` if memory does not suffice.
        """
        device = device or _default_device()
        dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
        fetch = from_checkpoint(checkpoint, dtype, device)
        self._build(checkpoint.config, fetch, settings, device, max_model_len, num_blocks)
        checkpoint.check_all_taken()

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        settings: EngineSettings,
        *,
        max_model_len: int,
        num_blocks: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> CudaBackend:
        """A model of that shape with random weights, made on the device: for measurements."""
        self = cls.__new__(cls)
        device = device or _default_device()
        dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
        self._build(config, random_weights(dtype, device, seed), settings, device, max_model_len, num_blocks)
        return self

    def _build(
        self,
        config: ModelConfig,
        fetch: Fetch,
        settings: EngineSettings,
        device: torch.device,
        max_model_len: int,
        num_blocks: int | None,
    ) -> None:
        if settings.block_size % PAGE_MULTIPLE:
            raise SettingsError(
                f"engine.block_size is {settings.block_size}; on CUDA it must be a multiple of {PAGE_MULTIPLE}.",
                f"Set it to {-(-settings.block_size // PAGE_MULTIPLE) * PAGE_MULTIPLE}.",
            )
        self.config = config
        self.device = device
        self.block_size = settings.block_size
        self.dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
        self.kv_bytes_per_token = kv_bytes_per_token(config, config.head_dim * self.dtype.itemsize)
        flash = find_flash(settings.attention) if device.type == "cuda" and self.dtype is torch.bfloat16 else None
        weights = build(
            config,
            fetch,
            dtype=self.dtype,
            bits=BITS[settings.quantization],
            device=device,
            max_positions=max_model_len,
        )
        self.weight_bytes = weights.streamed_bytes
        self.num_blocks = num_blocks or self._fitting_blocks(settings, max_model_len)
        shape = (config.num_layers, 2, self.num_blocks + 1, self.block_size, config.num_kv_heads, config.head_dim)
        pool = torch.zeros(shape, dtype=self.dtype, device=device)  # one block more: where padded rows write
        self.adapters = AdapterBank(config, settings.max_adapters, self.dtype, device)
        self.decoder = Decoder(config, weights, pool, self.adapters, flash)
        self.multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else INTERPRETER_MULTIPROCESSORS
        )
        self.max_model_len = max_model_len
        most_rows = step_tokens(settings, self.name)
        self.previous_ids = torch.zeros(most_rows + settings.max_num_seqs, dtype=torch.int64, device=device)
        self.staging = Staging(8 * most_rows, device)
        self.scratch: Scratch | None = None
        self.graphs = DecodeGraphs(
            self.decoder,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=max_model_len,
            previous_ids=self.previous_ids,
            multiprocessors=self.multiprocessors,
        )
        if device.type == "cuda":
            self.graphs.record_all()

    def forward(self, batch: Batch) -> Forward:
        """Send a step to the device. Its logits (and greedy ids) hold until the next call, in the stream's order."""
        if self.graphs.fits(batch):
            return self.graphs.run(batch)
        step, logit_rows = self._step(batch)
        residual_RK, delta_RK = self.decoder.run(step, self.previous_ids)
        hidden_TK = None
        if batch.want_hidden:
            hidden_TK = self.decoder.final_norm(residual_RK, delta_RK)
            last_RK = hidden_TK.index_select(0, logit_rows)
        else:
            last_RK = self.decoder.final_norm(residual_RK, delta_RK) if logit_rows.numel() else residual_RK
        logits_RV = torch.empty(logit_rows.numel(), self.config.vocab_size, dtype=torch.float32, device=self.device)
        if logit_rows.numel():
            self.decoder.weights.head.logits(last_RK, logits_RV)
        return Forward(logits_RV=logits_RV, hidden_TK=None if hidden_TK is None else hidden_TK.float())

    def remember(self, ids_R: torch.Tensor) -> None:
        """Keep the ids sampled from the last step's logits, for tokens that the next step calls `FROM_PREVIOUS`."""
        self.previous_ids[: ids_R.shape[0]].copy_(ids_R, non_blocking=True)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination), in the stream's order."""
        if not pairs:
            return
        sources, targets = torch.tensor(list(zip(*pairs, strict=True)), dtype=torch.int64).to(self.device)
        self.decoder.pool[:, :, targets] = self.decoder.pool[:, :, sources]

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """Make an adapter ready under a slot. Raises `ModelError` if it is for another base."""
        if self.adapters.load(slot, adapter):
            self.graphs.forget_adapters()

    def unload_adapter(self, slot: int) -> None:
        """Forget a slot's adapter."""
        self.adapters.unload(slot)

    def close(self) -> None:
        """Drop graphs, weights and pool. May be called twice."""
        if self.__dict__.pop("graphs", None) is None:
            return
        for name in ("decoder", "adapters", "staging", "scratch", "previous_ids"):
            self.__dict__.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _step(self, batch: Batch) -> tuple[Step, torch.Tensor]:
        """The step's integers on the device, and the rows that need logits (int64)."""
        counts = np.diff(batch.starts)
        single = np.flatnonzero(counts == 1).astype(np.int32)
        group = self.config.num_heads // self.config.num_kv_heads
        tile_sequences, tile_firsts = row_tiles(batch.starts, batch.lengths, group)
        previous = batch.previous_rows
        arrays = [
            batch.token_ids,
            np.full_like(batch.token_ids, -1) if previous is None else previous,
            batch.positions,
            batch.slots,
            batch.starts,
            batch.lengths,
            batch.block_tables,
            batch.logit_rows,
            single,
            tile_sequences,
            tile_firsts,
        ]
        lora = bool((batch.adapters >= 0).any())
        groups: list[tuple[int, int]] = []
        if lora:
            per_row = np.repeat(batch.adapters, counts)
            arrays.append(per_row)
            if batch.num_tokens > GATHERED_MAX_ROWS:
                for slot in np.unique(per_row[per_row >= 0]):
                    groups.append((int(slot), len(arrays)))
                    arrays.append(np.flatnonzero(per_row == slot).astype(np.int32))
        sent = self.staging.pack(arrays)
        adapter_rows = None
        if lora:
            adapter_rows = AdapterRows(
                slots_T=sent[11], groups=tuple((slot, sent[index].long()) for slot, index in groups)
            )
        plan = self._plan(batch, counts, sent, single.size)
        logit_rows = sent[7].long()
        step = Step(
            token_ids=sent[0],
            previous_rows=sent[1],
            positions=sent[2],
            slots=sent[3],
            plan=plan,
            adapter_rows=adapter_rows,
            logit_rows=None if batch.want_hidden or len(logit_rows) == batch.num_tokens else logit_rows,
        )
        return step, logit_rows

    def _plan(self, batch: Batch, counts: np.ndarray, sent: list[torch.Tensor], num_single: int) -> Plan:
        config = self.config
        longest = int(batch.lengths.max())
        splits = num_splits(num_single, config.num_kv_heads, longest, self.multiprocessors) if num_single else 1
        cells = num_single * config.num_heads * splits
        if self.scratch is None or self.scratch.sums.numel() < cells:
            self.scratch = Scratch.make(max(cells, 1), config.head_dim, self.device)
        return Plan(
            starts=sent[4],
            lengths_S=sent[5],
            tables_SB=sent[6],
            decode_sequences=sent[8],
            tile_sequences=sent[9],
            tile_firsts=sent[10],
            splits=splits,
            scratch=self.scratch,
            max_rows=int(counts.max()),
            max_length=longest,
        )

    def _fitting_blocks(self, settings: EngineSettings, max_model_len: int) -> int:
        """How many blocks fit: what was asked for, or what is left of the share of the GPU that may be taken."""
        if self.device.type != "cuda":
            return kv_blocks(self.kv_bytes_per_token, settings, free_bytes=1 << 62, max_model_len=max_model_len)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        room = int(settings.gpu_memory_utilization * total) - (total - free)
        if settings.kv_cache_mib == 0:
            settings = settings.model_copy(update={"kv_cache_mib": max(room // MIB, 1)})
        return kv_blocks(self.kv_bytes_per_token, settings, free_bytes=room, max_model_len=max_model_len)


def _default_device() -> torch.device:
    if not torch.cuda.is_available():
        raise ModelError(
            "PyTorch finds no CUDA GPU.", "Set engine.device to cpu, or install a CUDA build of PyTorch and its driver."
        )
    return torch.device("cuda", torch.cuda.current_device())
