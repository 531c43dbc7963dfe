"""A tiny random model that loads in milliseconds, and ways to run requests and put their outputs together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from midwatch.engine.request import Output, SamplingParams

if TYPE_CHECKING:
    from midwatch.engine.engine import Engine

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MakeEngine = Callable[..., "Engine"]


def write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    quantization: str = "F32",
    tied: bool = False,
    template: str | None = CHATML,
    extra_tensor: str | None = None,
    metadata: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A random 2-layer Llama over bytes: 260 tokens (3 control, one merge), hidden 64, 4 heads, context 256.

    `metadata` replaces or adds keys of the architecture.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    add_byte_tokenizer(writer, template)
    for key, value in (metadata or {}).items():
        adders = {str: writer.add_string, float: writer.add_float32, int: writer.add_int32}
        writer.kv_data[0].pop(f"{architecture}.{key}", None)
        adders[type(value)](f"{architecture}.{key}", value)

    def add(name: str, *shape: int, scale: float = 0.12) -> None:
        values = random.normal(0, scale, shape).astype(np.float32)
        if quantization == "F32" or len(shape) == 1:
            writer.add_tensor(name, values)
            return
        kind = gguf.GGMLQuantizationType[quantization]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", 260, 64, scale=1.0)
    add("output_norm.weight", 64, scale=1.0)
    if not tied:
        add("output.weight", 260, 64)
    for index in range(2):
        prefix = f"blk.{index}"
        for name in ("attn_norm", "ffn_norm"):
            add(f"{prefix}.{name}.weight", 64, scale=1.0)
        for name, rows, columns in (
            ("attn_q", 64, 64),
            ("attn_k", 32, 64),
            ("attn_v", 32, 64),
            ("attn_output", 64, 64),
            ("ffn_gate", 128, 64),
            ("ffn_up", 128, 64),
            ("ffn_down", 64, 128),
        ):
            add(f"{prefix}.{name}.weight", rows, columns)
    if extra_tensor is not None:
        add(extra_tensor, 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_byte_tokenizer(writer: gguf.GGUFWriter, template: str | None, *, pre: str = "smollm") -> None:
    """A tokenizer over bytes: 260 tokens, three of them control tokens, one a merge."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(code) for code in visible] + [chr(256 + index) for index in range(len(hidden))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"])
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)


def run_all(engine: Engine) -> Iterator[Output]:
    """Step until nothing is left."""
    while engine.has_work:
        yield from engine.step()


class Answer:
    """One request's outputs, put together."""

    def __init__(self, outputs: list[Output]) -> None:
        self.outputs = outputs
        self.text = "".join(output.text_delta for output in outputs)
        self.token_ids = [token for output in outputs for token in output.token_ids]
        self.logprobs = [item for output in outputs for item in output.logprobs]
        self.last = outputs[-1]


def answer(engine: Engine, prompt_ids: list[int], **params: object) -> Answer:
    """Run one request alone."""
    return answers(engine, [(prompt_ids, SamplingParams(**params))])[0]


def answers(engine: Engine, requests: list[tuple[list[int], SamplingParams]]) -> list[Answer]:
    """Run requests together."""
    ids = [engine.add_request(prompt_ids, params) for prompt_ids, params in requests]
    outputs = list(run_all(engine))
    return [Answer([output for output in outputs if output.request_id == id_]) for id_ in ids]
