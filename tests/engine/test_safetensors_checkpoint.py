"""Folders of safetensors that are damaged, hostile, or of a kind that the engine does not run."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import make_peer
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.transformer import TorchBackend
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    make_peer("gemma3").save_pretrained(path)
    return path


def copy(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def load(path: Path) -> TorchBackend:
    return TorchBackend(open_checkpoint(path), EngineSettings(), max_model_len=64, num_blocks=4)


def edit(path: Path, name: str, change: Any) -> None:
    value = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(change(value)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "'MixtralForCausalLM'"),
        ({"architectures": []}, "architecture"),
        ({"architectures": None}, "architecture"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_activation": "relu"}, "'relu'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}}, "'yarn'"),
        ({"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}, "sliding_attention": {}}}, "part of"),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2}}},
            "window",
        ),
        ({"rope_parameters": 3}, "object is needed"),
        ({"layer_types": ["chunked_attention"] * 6}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"num_hidden_layers": 10**9}, "whole number"),
        ({"num_hidden_layers": "6"}, "whole number"),
        ({"head_dim": 33}, "divide"),
        ({"hidden_size": 10**12}, "whole number"),
        ({"hidden_size": 128}, "shape"),
        ({"vocab_size": 2**23}, "shape"),
        ({"query_pre_attn_scalar": 0}, "positive number"),
        ({"tie_word_embeddings": False}, "lm_head"),
        ({"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}, "does not use"),
        ({"num_hidden_layers": 7, "layer_types": ["full_attention"] * 7}, "no tensor"),
    ],
)
def test_a_config_that_the_engine_does_not_run_is_refused_by_name(
    whole: Path, tmp_path: Path, change: dict, why: str
) -> None:
    edit(copy(whole, tmp_path), "config.json", lambda value: {**value, **change})
    with pytest.raises(ModelError, match=why):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"hidden_size": NaN}', "\x00"])
def test_a_config_that_is_no_object_is_a_model_error(whole: Path, tmp_path: Path, text: str) -> None:
    (copy(whole, tmp_path) / "config.json").write_text(text)
    with pytest.raises(ModelError):
        load(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 5) + b'{"a":',
        struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_of',
        struct.pack("<Q", 53) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}}',
    ],
)
def test_a_file_that_is_no_safetensors_is_a_model_error(whole: Path, tmp_path: Path, raw: bytes) -> None:
    (copy(whole, tmp_path) / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError):
        load(tmp_path)


def test_another_number_type_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(whole / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, copy(whole, tmp_path) / "model.safetensors")
    with pytest.raises(ModelError, match="F8_E4M3"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"weight_map": {"a": "../../secret.safetensors"}}, "outside its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside its folder"),
        ({"weight_map": {"a": "absent.safetensors"}}, "absent.safetensors"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({"weight_map": {f"t{index}": f"{index}.safetensors" for index in range(2000)}}, "too many"),
        ({}, "weight_map"),
    ],
)
def test_an_index_may_name_files_of_its_own_folder_only(whole: Path, tmp_path: Path, index: dict, why: str) -> None:
    (copy(whole, tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=why):
        load(tmp_path)


def test_a_folder_without_weights_or_with_two_sets_says_so(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json"):
        open_checkpoint(tmp_path)
    copy(whole, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    assert open_checkpoint(tmp_path).config.num_layers == 6
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes())
    with pytest.raises(ModelError, match="2 safetensors files"):
        open_checkpoint(tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_can_crash_the_reader(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = copy(whole, tmp_path_factory.getbasetemp() / "fuzzed_folder")
    file = path / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    raw = bytearray(file.read_bytes())
    end = min(len(raw), 8 + struct.unpack("<Q", raw[:8])[0]) if file.suffix == ".safetensors" else len(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, end - 1))
        raw[at : at + 1] = data.draw(st.one_of(st.binary(max_size=8), st.just(b"9"), st.just(b"99999")))
    file.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, end]))])
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(path)
    except ModelError as error:
        assert error.what
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 100 << 10
