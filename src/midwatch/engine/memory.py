"""How much memory weights, keys and values take, and how many KV blocks fit: sizing in one place."""

from __future__ import annotations

from pathlib import Path

from midwatch.engine.checkpoint import ModelConfig
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings

CPU_DEFAULT_MIB = 512
STEP_TOKENS = {"native": 96, "torch": 512, "cuda": 8192}
"""A step's budget by backend: where more rows make no row cheaper (results/engine/budget.json), so that none waits."""
MIB = 1 << 20


def step_tokens(settings: EngineSettings, backend: str) -> int:
    """The budget of one step: what the settings ask for, or the backend's own; each seat has a token of it."""
    return max(settings.max_num_batched_tokens or STEP_TOKENS.get(backend, 512), settings.max_num_seqs)


def kv_bytes_per_token(config: ModelConfig, bytes_per_head: int) -> int:
    """Bytes of one place over all layers; `bytes_per_head` counts one key or value vector of one kv head."""
    return config.num_layers * 2 * config.num_kv_heads * bytes_per_head


def kv_blocks(bytes_per_token: int, settings: EngineSettings, *, free_bytes: int, max_model_len: int) -> int:
    """How many blocks the pool gets: what `kv_cache_mib` asks for, or a default between one and all seats full.

    `free_bytes` is what may be taken. Raises `ModelError` if one context does not fit, saying how much is missing.
    """
    block_bytes = bytes_per_token * settings.block_size
    one_context = -(-max_model_len // settings.block_size) * block_bytes
    default = max(min(CPU_DEFAULT_MIB * MIB, settings.max_num_seqs * one_context), one_context)
    wanted = settings.kv_cache_mib * MIB or default
    if wanted > free_bytes or one_context > wanted:
        room = min(wanted, free_bytes)
        missing = max(one_context, wanted if settings.kv_cache_mib else 0) - room
        if missing > 0:
            raise ModelError(
                f"Keys and values of one context of {max_model_len} tokens take {one_context / MIB:,.0f} MiB; "
                f"{room / MIB:,.0f} MiB may be used, {missing / MIB:,.0f} MiB are missing.",
                "Lower engine.max_model_len, raise engine.kv_cache_mib if memory is free, or choose a smaller model.",
            )
        wanted = room
    return int(wanted // block_bytes)


def available_cpu_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be taken without swapping, bytes; a large number where the system does not say."""
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return 1 << 62
