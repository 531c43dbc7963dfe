"""The tokenizer of a GGUF file as the files that transformers, vLLM and the engine read from a folder.

Byte-level BPE only. The same merges and the same splitter as the engine's own, so ids are equal; but where the engine
takes text as text, transformers turns `<|im_end|>` in a text into the control token, as everybody expects of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midwatch.engine.vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary, byte_level_bpe, from_gguf
from midwatch.engine.weights import GGUF
from midwatch.errors import TuningError
from midwatch.tuning.model_folder import write_json

_WRITTEN_ELSEWHERE = ("tokens", "token_type", "merges", "scores", "chat_template")
_NAMED_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_tokenizer(gguf: GGUF, folder: Path, *, context_length: int) -> dict[str, Any]:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.

    Returns what writing a GGUF file back needs and these files do not say. Raises `TuningError` for a vocabulary that
    is not byte-level BPE, `ModelError` for one that the engine does not read.
    """
    metadata = gguf.metadata
    if metadata.get("tokenizer.ggml.model") == "llama":
        raise TuningError(
            f"{gguf.path} has a SentencePiece vocabulary; only byte-level BPE is converted.",
            "Fetch the model as a Hugging Face folder instead (midwatch models pull hf:ORG/NAME).",
        )
    parts = from_gguf(gguf)
    types: list[int] = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(parts.tokens))
    _write_tokenizer_json(gguf, parts, types, folder / "tokenizer.json")
    ids: dict[str, int] = {}
    for name, key in _NAMED_IDS.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(parts.tokens):
            ids[name] = index
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": parts.adds_bos,
        **{name: parts.tokens[index] for name, index in ids.items()},
    }
    if isinstance(parts.template, str):
        settings["chat_template"] = parts.template
    write_json(folder / "tokenizer_config.json", settings)
    eos = ids.get("eos_token")
    ends = sorted(parts.eos_ids, key=lambda index: (index != eos, index))
    named = {"bos_token_id": ids.get("bos_token"), "pad_token_id": ids.get("pad_token"), "eos_token_id": ends}
    write_json(folder / "generation_config.json", {key: value for key, value in named.items() if value is not None})
    return {
        "metadata": {
            key: value
            for key, value in metadata.items()
            if key.startswith("tokenizer.") and key.rpartition(".")[2] not in _WRITTEN_ELSEWHERE
        },
        "token_types": {str(kind): _where(types, kind) for kind in sorted(set(types) - {NORMAL})},
    }


def _where(types: list[int], kind: int) -> list[int]:
    return [index for index, found in enumerate(types) if found == kind]


def _write_tokenizer_json(gguf: GGUF, parts: Vocabulary, types: list[int], path: Path) -> None:
    from tokenizers import AddedToken, decoders, processors

    backend = byte_level_bpe(gguf, parts.tokens, gguf.metadata.get("tokenizer.ggml.pre"))
    backend.decoder = decoders.ByteLevel()
    for index, kind in enumerate(types):
        if kind in (CONTROL, USER_DEFINED):
            token = AddedToken(parts.tokens[index], special=kind == CONTROL, normalized=False)
            backend.add_special_tokens([token]) if kind == CONTROL else backend.add_tokens([token])
    if parts.adds_bos and parts.bos_id is not None:
        bos = parts.tokens[parts.bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, parts.bos_id)]
        )
    backend.save(str(path))
