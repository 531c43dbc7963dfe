"""An adapter knows its base, and says by name, shape and hash why another is not it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from adapters import write_adapter
from tuning_models import make_model, write_gguf

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.errors import TuningError
from midwatch.tuning import identity
from midwatch.tuning.convert import convert


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return convert(
        write_gguf("llama", make_model("llama"), tmp_path / "base.gguf"), tmp_path / "base", name="pypi:base"
    )


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    write_adapter(tmp_path / "adapter", open_checkpoint(base).config)
    identity.write(tmp_path / "adapter", base)
    return tmp_path / "adapter"


def plain_folder(path: Path, scale: float = 1.0, **changes: object) -> Path:
    """A folder that transformers saved, so that nothing says where its weights came from."""
    from family_models import make_peer

    model = make_peer("llama", vocab_size=260, **changes)
    model.model.layers[1].mlp.down_proj.weight.data.mul_(scale)
    model.save_pretrained(path)
    return path


def test_an_adapter_fits_the_base_that_it_was_trained_on(base: Path, adapter: Path) -> None:
    found = identity.check(adapter, base)
    assert found.certain
    assert "pypi:base" in found.what


def test_the_same_file_in_another_dtype_is_the_same_base(tmp_path: Path, base: Path, adapter: Path) -> None:
    again = convert(tmp_path / "base.gguf", tmp_path / "again", dtype="float32")
    assert identity.fingerprint(again).content_sha256 != identity.fingerprint(base).content_sha256
    assert identity.check(adapter, again).certain


def test_another_shape_is_named(tmp_path: Path, adapter: Path) -> None:
    other = plain_folder(tmp_path / "other", intermediate_size=64)
    with pytest.raises(TuningError, match=r"on pypi:base and not on other: .*0\.mlp\.down_proj.* 64x96 and 64x64"):
        identity.check(adapter, other)


def test_a_missing_layer_is_named(tmp_path: Path, adapter: Path) -> None:
    other = plain_folder(tmp_path / "other", num_hidden_layers=2)
    with pytest.raises(TuningError, match=r"layers\.2\.\S+ is \S+ and missing"):
        identity.check(adapter, other)


def test_equal_shapes_from_another_file_are_told_apart(tmp_path: Path, adapter: Path) -> None:
    model = make_model("llama")
    model.model.norm.weight.data[0] += 1
    other = convert(write_gguf("llama", model, tmp_path / "other.gguf"), tmp_path / "other", name="pypi:other")
    with pytest.raises(TuningError, match=r"not on pypi:other: the hash of the file .* is \w{12} and \w{12}"):
        identity.check(adapter, other)


def test_equal_shapes_with_other_numbers_are_told_apart(tmp_path: Path, adapter: Path) -> None:
    one, other = plain_folder(tmp_path / "one"), plain_folder(tmp_path / "two", scale=1.5)
    identity.write(adapter, one)
    assert identity.check(adapter, one).certain
    shutil.copytree(one, tmp_path / "copy")
    assert identity.check(adapter, tmp_path / "copy").certain
    with pytest.raises(TuningError, match="the hash of their tensors"):
        identity.check(adapter, other)


def test_an_adapter_from_elsewhere_is_judged_by_its_shapes(tmp_path: Path, base: Path, adapter: Path) -> None:
    (adapter / identity.BASE).unlink()
    found = identity.check(adapter, base)
    assert not found.certain
    assert "hash of its base is unknown" in found.what
    other = plain_folder(tmp_path / "other", intermediate_size=64)
    with pytest.raises(TuningError, match=r"does not fit: .*shape \(4, 96\).*\(4, 64\)"):
        identity.check(adapter, other)


def test_a_broken_statement_is_said(base: Path, adapter: Path) -> None:
    (adapter / identity.BASE).write_text("{}")
    with pytest.raises(TuningError, match="does not say which base"):
        identity.check(adapter, base)
