"""A converted folder computes what the GGUF file computes, speaks its tokens, and is whole or not there."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import all_logits
from engine_models import write_tiny_gguf
from tuning_models import FAMILIES, IDS, NASTY, logits_of, make_model, write_gguf

from midwatch.engine.checkpoint import ModelConfig, open_checkpoint
from midwatch.engine.download import Tools
from midwatch.engine.safetensors_checkpoint import llama3_factors
from midwatch.engine.tokenizer import open_tokenizer
from midwatch.engine.transformer import TorchBackend
from midwatch.errors import DownloadError, ModelError, TuningError
from midwatch.settings import EngineSettings
from midwatch.tuning.convert import convert, converted, dtype_of
from midwatch.tuning.model_folder import TensorWriter, is_whole, provenance_of
from midwatch.tuning.rope_scaling import rope_parameters


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@functools.cache
def engine_config(family: str) -> ModelConfig:
    with tempfile.TemporaryDirectory() as folder:
        return open_checkpoint(write_gguf(family, make_model(family), Path(folder) / "tiny.gguf")).config


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """transformers' model, and the folder that its GGUF file was converted to, float32."""
    model, folder = make_model(request.param), tmp_path_factory.mktemp("pair")
    source = write_gguf(request.param, model, folder / "tiny.gguf")
    return model, source, convert(source, folder / "out", dtype="float32")


def test_every_logit_of_a_family_is_kept(pair) -> None:
    model, _, folder = pair
    assert (logits_of(load(folder), IDS) - logits_of(model, IDS)).abs().max() < 1e-4


def test_the_engine_reads_the_folder_as_it_reads_the_file(pair) -> None:
    _, source, folder = pair
    settings = EngineSettings(dtype="float32", quantization="none")
    one, other = (
        all_logits(TorchBackend(open_checkpoint(path), settings, max_model_len=64, num_blocks=8), IDS)
        for path in (source, folder)
    )
    assert (one - other).abs().max() < 1e-4


def test_config_says_the_same_rotary_settings_as_the_original(pair) -> None:
    model, _, folder = pair
    found = load(folder).config
    assert {**found.rope_parameters} == pytest.approx({**model.config.rope_parameters})
    assert found.tie_word_embeddings == model.config.tie_word_embeddings
    assert found.model_type == model.config.model_type


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
@pytest.mark.parametrize("bos", [False, True])
def test_ids_and_prompts_are_those_of_the_engine(tmp_path: Path, pre: str, bos: bool) -> None:
    from transformers import AutoTokenizer

    source = write_gguf("llama", make_model("llama"), tmp_path / "tiny.gguf", pre=pre, bos=bos)
    folder = convert(source, tmp_path / "out")
    ours, ours_of_folder, theirs = open_tokenizer(source), open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in NASTY:
        assert theirs.encode(text) == ours.encode(text) == ours_of_folder.encode(text), text
        assert theirs.decode(theirs.encode(text), skip_special_tokens=True) == text
    assert theirs.encode("<|im_end|>", add_special_tokens=False) == [2]
    turns = [{"role": "user", "content": "Is it 2 am?\n"}, {"role": "assistant", "content": "No."}]
    rendered = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (
        theirs.encode(rendered, add_special_tokens=False)
        == ours.chat_prompt(turns)
        == ours_of_folder.chat_prompt(turns)
    )


def test_a_16_bit_folder_holds_the_rounded_numbers(tmp_path: Path) -> None:
    model = make_model("llama")
    source = write_gguf("llama", model, tmp_path / "tiny.gguf")
    folder = convert(source, tmp_path / "out", dtype="bfloat16")
    found, held = load(folder).state_dict(), model.state_dict()
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], held[name].bfloat16()) for name in held)


def test_provenance_names_the_source_its_hash_and_its_licence(tmp_path: Path) -> None:
    source = write_gguf("llama", make_model("llama"), tmp_path / "tiny.gguf")
    found = provenance_of(convert(source, tmp_path / "out", name="pypi:tiny"))
    assert found["source"] == {
        "name": "pypi:tiny",
        "file": "tiny.gguf",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "quantization": "F32",
    }
    assert found["licence"] == "MIT"
    assert found["tokenizer"]["metadata"]["tokenizer.ggml.pre"] == "smollm"
    assert found["tokenizer"]["token_types"] == {"3": [0, 1, 2]}
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == open_tokenizer(source).eos_ids
    assert ends[0] == 2


def test_a_second_conversion_finds_the_first(tmp_path: Path) -> None:
    source, seen = write_gguf("llama", make_model("llama"), tmp_path / "tiny.gguf"), []
    tools = Tools(progress=lambda what, done, total: seen.append((what, done, total)))
    folder = converted(source, tmp_path / "cache", tools=tools)
    assert folder.parent == tmp_path / "cache" / "converted"
    assert seen[-1][0] == "converting"
    assert seen[-1][1] == seen[-1][2]
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted(source, tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert converted(source, tmp_path / "cache", dtype="float32") != folder


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", seed=1)
    folder = converted(source, tmp_path)
    assert converted(write_tiny_gguf(source, seed=2), tmp_path) != folder


def test_a_folder_that_lost_a_byte_is_converted_again(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = converted(source, tmp_path)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    assert not is_whole(folder)
    assert converted(source, tmp_path) == folder
    assert weights.stat().st_size == size


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", extra_tensor="blk.0.strange.weight")
    with pytest.raises(ModelError, match=r"strange"):
        convert(source, tmp_path / "here" / "out")
    assert list((tmp_path / "here").iterdir()) == []
    full = Tools(free_bytes=lambda path: 1000)
    with pytest.raises(DownloadError, match=r"0 MB free"):
        convert(write_tiny_gguf(source), tmp_path / "here" / "out", tools=full)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    source, target = write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(TuningError, match="there already"):
        convert(source, target)
    assert (target / "mine").read_text() == "precious"


def test_what_is_not_converted_is_said(tmp_path: Path) -> None:
    gemma = write_gguf("gemma3", make_model("gemma3"), tmp_path / "gemma.gguf")
    with pytest.raises(TuningError, match="architecture gemma3; llama, qwen2, qwen3 are converted"):
        convert(gemma, tmp_path / "out")
    with pytest.raises(TuningError, match="is a folder"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(TuningError, match="There is no file"):
        convert(tmp_path / "nothing.gguf", tmp_path / "out")
    with pytest.raises(TuningError, match="bfloat16, float16, float32"):
        dtype_of("int8")


def test_frequencies_that_no_setting_makes_are_refused() -> None:
    config = replace(engine_config("llama3"), rope_factors=tuple(float(index) for index in range(1, 17)))
    with pytest.raises(TuningError, match="neither linear nor Llama 3's"):
        rope_parameters(config)


@pytest.mark.parametrize("settings", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 2.5, 4096)])
def test_the_four_numbers_of_llama_3_are_found_again(settings: tuple[float, float, float, int]) -> None:
    factor, low, high, context = settings
    made = llama3_factors(500_000.0, 128, factor=factor, low=low, high=high, context=context)
    rounded = tuple(torch.tensor(made).tolist())  # float32, as in the file
    config = replace(engine_config("llama"), head_dim=128, rope_factors=rounded, layer_rope_bases=(500_000.0,))
    assert rope_parameters(config)["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def test_one_divisor_for_all_is_linear_scaling() -> None:
    config = replace(engine_config("llama3"), rope_factors=(4.0,) * 16)
    assert rope_parameters(config)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_many_tensors_become_shards_with_an_index(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.randn(10, 10) for index in range(5)}
    writer = TensorWriter(tmp_path, shard_bytes=800)
    for name, values in tensors.items():
        writer.add(name, values)
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    from safetensors import safe_open

    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert torch.equal(opened.get_tensor(name), tensors[name])


@pytest.mark.weights
def test_smollm2_keeps_its_logits_over_two_hundred_positions(smollm2_path: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(smollm2_path)
    ids = tokenizer.encode((Path(__file__).parents[2] / "README.md").read_text("utf-8"))[:224]
    settings = EngineSettings(dtype="float32", quantization="none", threads=1)
    ours = all_logits(TorchBackend(open_checkpoint(smollm2_path), settings, max_model_len=256, num_blocks=16), ids)
    theirs = logits_of(load(convert(smollm2_path, tmp_path / "out", dtype="float32")), ids)
    assert ours.shape == theirs.shape == (224, 49152)
    assert (ours - theirs).abs().max() < 5e-4
    assert bool((ours.argmax(-1) == theirs.argmax(-1)).all())
