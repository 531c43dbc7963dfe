from __future__ import annotations

import resource
import struct
from pathlib import Path

import gguf
import pytest
from batches import all_logits
from engine_models import write_tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.tokenizer import open_tokenizer
from midwatch.engine.transformer import TorchBackend
from midwatch.engine.weights import GGUF
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings


def header(keys: bytes = b"", num_keys: int = 0, num_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + keys


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def parse(tmp_path: Path, data: bytes) -> GGUF:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return GGUF(path)


def load(path: Path) -> TorchBackend:
    open_tokenizer(path)
    return TorchBackend(open_checkpoint(path), EngineSettings(), max_model_len=64, num_blocks=4)


def test_the_header_is_read_as_the_reference_reader_reads_it(tiny_path: Path) -> None:
    ours, theirs = GGUF(tiny_path), gguf.GGUFReader(tiny_path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.metadata[key] == field.contents(), key
    assert ours.tensor_names == tuple(tensor.name for tensor in theirs.tensors)


def test_the_shape_of_smollm2_is_read(smollm2_path: Path) -> None:
    config = open_checkpoint(smollm2_path).config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.vocab_size, config.context_length, config.layer_rope_bases[0]) == (49152, 8192, 100_000.0)
    assert config.tied_embeddings


@pytest.mark.parametrize("cut", [0, 3, 10, 23, 24, 30, 100, 1000, -1, -4000])
def test_a_cut_file_is_a_model_error(tiny_path: Path, tmp_path: Path, cut: int) -> None:
    with pytest.raises(ModelError):
        parse(tmp_path, tiny_path.read_bytes()[:cut])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not a model at all, just text", "magic"),
        (header(version=1), "version"),
        (header(version=3 << 24), "version"),
        (header(num_keys=2**63), "claims"),
        (header(num_tensors=2**40), "claims"),
        (header(num_keys=1, keys=struct.pack("<Q", 2**62)), "claims a name"),
        (header(num_keys=1, keys=text(b"k") + struct.pack("<I", 77)), "unknown type"),
        (header(num_keys=1, keys=text(b"k") + struct.pack("<IIQ", 9, 4, 2**60)), "past the end"),
        (header(num_keys=1, keys=text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)), "past the end"),
        (header(num_keys=1, keys=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "array of type 9"),
        (header(num_keys=1, keys=text(b"\xff\xfe") + struct.pack("<II", 4, 1)), "not UTF-8"),
        (header(num_keys=1, keys=text(b"general.alignment") + struct.pack("<II", 4, 0)), "alignment"),
        (header(num_tensors=1, keys=text(b"t") + struct.pack("<I", 900)), "dimensions"),
        (header(num_tensors=1, keys=text(b"t") + struct.pack("<IQIQ", 1, 2**62, 0, 0)), "ends inside"),
        (header(num_tensors=1, keys=text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 2**63)), "ends inside"),
        (header(num_tensors=1, keys=text(b"t") + struct.pack("<IQIQ", 1, 31, 2, 0)), "cannot hold"),
        (header(num_tensors=1, keys=text(b"t") + struct.pack("<IQIQ", 1, 32, 99, 0)), "unknown type 99"),
    ],
)
def test_a_hostile_header_is_a_model_error_that_says_why(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        parse(tmp_path, data + bytes(64))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_change_of_header_bytes_can_crash_the_reader(
    tiny_path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(tiny_path.read_bytes())
    header_bytes = raw.index(b"ffn_down") + 200
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, header_bytes))
        raw[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), header_bytes, len(raw) - 1]))])
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(path)
    except ModelError as error:
        assert error.what
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 100 << 10


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot read weights"):
        GGUF(tmp_path / "absent.gguf")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", architecture="phi3")
    with pytest.raises(ModelError, match="'phi3'"):
        open_checkpoint(path)


def test_a_tensor_of_another_shape_is_refused(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match="shape"):
        GGUF(tiny_path).tensor("token_embd.weight", (1, 1))
    with pytest.raises(ModelError, match="no tensor"):
        GGUF(tiny_path).tensor("absent.weight", (1, 1))


def test_a_model_with_more_than_a_llama_has_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "biased.gguf", extra_tensor="blk.0.attn_q.bias")
    with pytest.raises(ModelError, match="attn_q.bias"):
        load(path)


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"expert_count": 8}, "expert_count"),
        ({"attn_logit_softcapping": 50.0}, "softcapping"),
        ({"final_logit_softcapping": 30.0}, "softcapping"),
        ({"rope.scaling.type": "yarn"}, "yarn"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": -1.0}, "positive number"),
        ({"attention.sliding_window": 128}, "sliding window"),
        ({"rope.dimension_count": 8}, "head size"),
        ({"attention.value_length": 32}, "head size"),
        ({"attention.head_count_kv": 3}, "divide"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "positive number"),
        ({"block_count": 100_000}, "whole number"),
        ({"embedding_length": 0}, "whole number"),
        ({"context_length": -3}, "whole number"),
        ({"rope.freq_base": "much"}, "positive number"),
    ],
)
def test_what_the_engine_does_not_run_is_refused_by_name(tmp_path: Path, metadata: dict, why: str) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", metadata=metadata)
    with pytest.raises(ModelError, match=why):
        open_checkpoint(path)


@pytest.mark.parametrize("quantization", ["Q4_0", "Q8_0"])
def test_scales_that_are_no_numbers_do_no_harm(tmp_path: Path, quantization: str) -> None:
    path = write_tiny_gguf(tmp_path / "nan.gguf", quantization=quantization)
    raw = bytearray(path.read_bytes())
    blocks = open_checkpoint(path).tensor("layers.1.down").blocks
    at = raw.rindex(bytes(blocks[0].tolist()))
    raw[at : at + 2] = b"\x00\x7e"  # float16 NaN
    path.write_bytes(raw)
    backend = TorchBackend(open_checkpoint(path), EngineSettings(dtype="float32"), max_model_len=64, num_blocks=4)
    assert all_logits(backend, [5, 6, 7]).isnan().any()


def test_no_tensor_is_read_twice_as_large_as_the_file(tiny_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_path)
    embedding = checkpoint.tensor("embedding")
    assert embedding.blocks.shape == (260, 64 * 4) and embedding.ggml_type == "F32"
    assert checkpoint.tensor("final_norm").rows == 1
    with pytest.raises(ModelError, match="does not use"):
        checkpoint.check_all_taken()
