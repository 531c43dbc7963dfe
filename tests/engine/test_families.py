"""Every family, from both formats, against transformers with the same random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from batches import Part, all_logits, run
from family_models import FAMILIES, make_peer, write_family_gguf

from midwatch.engine.checkpoint import Checkpoint, open_checkpoint
from midwatch.engine.transformer import TorchBackend
from midwatch.settings import EngineSettings

TEXT = [int(token) for token in torch.randint(1, 128, (40,), generator=torch.Generator().manual_seed(3))]
LIMIT = 1e-4


def backend_of(checkpoint: Checkpoint) -> TorchBackend:
    settings = EngineSettings(dtype="float32", quantization="none", block_size=4)
    return TorchBackend(checkpoint, settings, max_model_len=64, num_blocks=32)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def peer(family: str):
    return make_peer(family)


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backend(folder: Path) -> TorchBackend:
    return backend_of(open_checkpoint(folder))


@pytest.fixture(scope="module")
def expected(peer) -> torch.Tensor:
    with torch.no_grad():
        return peer(torch.tensor([TEXT])).logits[0]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() < LIMIT


def test_logits_equal_those_of_transformers(backend: TorchBackend, expected: torch.Tensor) -> None:
    assert expected.std() > 0.3, "a model that says nothing would prove nothing"
    assert_same(all_logits(backend, TEXT), expected)


@pytest.mark.parametrize("chunk", [1, 7])
def test_logits_in_chunks_over_scattered_blocks_equal_them_too(
    backend: TorchBackend, expected: torch.Tensor, chunk: int
) -> None:
    table = [3, 30, 4, 5, 29, 0, 12, 9, 8, 7]
    rows = [
        run(backend, Part(token_ids=TEXT[at : at + chunk], table=table, start=at, logits="all"))
        for at in range(0, len(TEXT), chunk)
    ]
    assert_same(torch.cat(rows), expected)


def test_a_batch_of_unequal_sequences_equals_each_alone(backend: TorchBackend, expected: torch.Tensor) -> None:
    run(backend, Part(token_ids=TEXT[:20], table=range(10, 20)))
    together = run(
        backend,
        Part(token_ids=TEXT[:33], table=range(10), logits="all"),
        Part(token_ids=TEXT[20:21], table=range(10, 20), start=20),
    )
    assert_same(together, torch.cat([expected[:33], expected[20:21]]))


def test_hidden_states_equal_those_of_transformers(backend: TorchBackend, peer) -> None:
    with torch.no_grad():
        theirs = peer.model(torch.tensor([TEXT])).last_hidden_state[0]
    assert_same(run(backend, Part(token_ids=TEXT, table=range(10)), want_hidden=True), theirs)


def test_gguf_gives_the_same_logits(family: str, peer, expected: torch.Tensor, tmp_path: Path) -> None:
    if family == "qwen2_windows":
        pytest.skip("GGUF files of Qwen 2 name no window")
    path = write_family_gguf(family, peer, tmp_path / "model.gguf")
    assert_same(all_logits(backend_of(open_checkpoint(path)), TEXT), expected)


def test_both_formats_have_the_same_shape(family: str, peer, folder: Path, tmp_path: Path) -> None:
    if family == "qwen2_windows":
        pytest.skip("GGUF files of Qwen 2 name no window")
    from_gguf = open_checkpoint(write_family_gguf(family, peer, tmp_path / "model.gguf")).config
    from_folder = open_checkpoint(folder).config
    for field in vars(from_folder):
        ours, theirs = getattr(from_gguf, field), getattr(from_folder, field)
        assert ours == (pytest.approx(theirs, rel=1e-5) if field not in ("architecture", "activation") else theirs)


def test_shards_and_half_precision_give_the_same_logits(
    family: str, peer, expected: torch.Tensor, tmp_path: Path
) -> None:
    peer.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same(all_logits(backend_of(open_checkpoint(tmp_path / "shards")), TEXT), expected)
    make_peer(family).bfloat16().save_pretrained(tmp_path / "half")
    rounded = type(peer).from_pretrained(tmp_path / "half", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = rounded(torch.tensor([TEXT])).logits[0]
    assert_same(all_logits(backend_of(open_checkpoint(tmp_path / "half")), TEXT), theirs)


def test_the_older_spelling_of_rotary_settings_is_read(family: str, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    if family == "gemma3":
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        del config["layer_types"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).config == open_checkpoint(folder).config


@pytest.mark.parametrize(("quantization", "limit"), [("none", 0.001), ("int8", 0.003), ("int4", 0.2)])
def test_the_quick_forms_stay_near_the_reference(
    folder: Path, expected: torch.Tensor, quantization: str, limit: float
) -> None:
    settings = EngineSettings(dtype="bfloat16", quantization=quantization, block_size=4)
    quick = TorchBackend(open_checkpoint(folder), settings, max_model_len=64, num_blocks=32)
    exact = torch.log_softmax(expected, -1)
    for chunk in (0, 1):
        near = torch.log_softmax(all_logits(quick, TEXT, chunk=chunk), -1)
        divergence = (exact.exp() * (exact - near)).sum(-1).mean()
        assert divergence < limit, chunk
