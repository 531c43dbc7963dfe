"""Tokenizers of folders in Hugging Face's layout, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocabulary import GEMMA, merged_tokens

from midwatch.engine.sentencepiece import SPACE
from midwatch.engine.tokenizer import open_tokenizer
from midwatch.errors import ModelError

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["", " ", "It's 2026;  we'LL\n\n\tsee", "漢🙂 é", "ab ab  aab", "<|im_end|> </s> <think>", "\x00\x7f"]


def save(tokenizer: Any, path: Path, vocab_size: int) -> Path:
    tokenizer.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    model = json.loads(backend.to_str())["model"]
    peer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], eos_token="<|im_end|>"
    )
    peer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<think>", special=False)])
    peer.chat_template = TEMPLATE
    return peer, save(peer, tmp_path_factory.mktemp("qwen"), 420)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer

    controls = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "\n"]
    names = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *merged_tokens()]
    vocab = {name: index for index, name in enumerate(names)}
    merges = [
        (name[:at], name[at:])
        for name in merged_tokens()
        for at in range(1, len(name))
        if {name[:at], name[at:]} <= {*vocab}
    ]
    peer = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    peer.add_tokens([AddedToken(name, special=True) for name in ("<start_of_turn>", "<end_of_turn>")])
    peer.add_tokens([AddedToken("\n", special=False, normalized=False)])
    peer.chat_template = GEMMA
    return peer, save(peer, tmp_path_factory.mktemp("gemma"), len(vocab))


@pytest.fixture(params=["qwen", "gemma"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Path]:
    return request.getfixturevalue(request.param)


def test_ids_equal_those_of_transformers(pair: tuple[Any, Path]) -> None:
    peer, path = pair
    ours = open_tokenizer(path)

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.sampled_from("ab _é漢🙂\n\t12'sLl<>/"), max_size=30))
    def check(text: str) -> None:
        assert ours.encode(text) == peer.encode(text)
        assert ours.decode(ours.encode(text)) == text

    check()


def test_text_never_turns_into_an_added_token(pair: tuple[Any, Path]) -> None:
    _, path = pair
    ours = open_tokenizer(path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert set(ids[1:] if ours.adds_bos else ids).isdisjoint(ours.control_ids), text
        assert ours.decode(ids) == text


def test_a_conversation_is_laid_out_as_transformers_does(pair: tuple[Any, Path]) -> None:
    peer, path = pair
    messages = [{"role": "user", "content": "ab aa"}, {"role": "assistant", "content": "b\nb"}]
    theirs = peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert open_tokenizer(path).chat_prompt(messages) == theirs


def test_beginning_and_end_are_known(qwen: tuple[Any, Path], gemma: tuple[Any, Path]) -> None:
    ours = open_tokenizer(qwen[1])
    assert not ours.adds_bos
    assert {ours.tokens[index] for index in ours.eos_ids} == {"<|im_end|>", "<|endoftext|>"}
    ours = open_tokenizer(gemma[1])
    assert ours.adds_bos and ours.bos_id == 2
    assert {ours.tokens[index] for index in ours.eos_ids} == {"<eos>", "<end_of_turn>"}
    assert ours.token_bytes(ours.tokens.index("<0xE6>")) == b"\xe6"
    assert ours.token_bytes(ours.tokens.index(SPACE)) == b" "


def test_rows_without_a_token_are_silent(qwen: tuple[Any, Path]) -> None:
    ours = open_tokenizer(qwen[1])
    assert ours.vocab_size == 420
    assert 419 in ours.control_ids and ours.decode([419]) == ""


def change(source: Path, target: Path, name: str, edit: Any) -> Path:
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    value = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps(edit(value)))
    return target


@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        ("tokenizer.json", lambda value: [value], "no BPE model"),
        ("tokenizer.json", lambda value: {**value, "model": {"type": "Unigram", "vocab": []}}, "no BPE model"),
        ("tokenizer.json", lambda value: {**value, "decoder": {"type": "WordPiece"}}, "decodes"),
        ("tokenizer.json", lambda value: {**value, "added_tokens": 3}, "not a list"),
        ("tokenizer.json", lambda value: {**value, "model": {**value["model"], "merges": [["x", "漢"]]}}, "cannot be"),
        ("tokenizer.json", lambda value: {**value, "model": {**value["model"], "vocab": {"a": 10**9}}}, "beyond"),
        ("tokenizer.json", lambda value: {**value, "model": {**value["model"], "vocab": {"a": "b"}}}, "beyond"),
        ("config.json", lambda value: {"vocab_size": 10**6}, "belong together"),
        ("config.json", lambda value: {"vocab_size": 300}, "beyond"),
        ("config.json", lambda value: {}, "vocab_size"),
    ],
)
def test_what_does_not_fit_is_a_model_error(
    qwen: tuple[Any, Path], tmp_path: Path, name: str, edit: Any, why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        open_tokenizer(change(qwen[1], tmp_path, name, edit))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_can_crash_the_reader(
    gemma: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    target = tmp_path_factory.getbasetemp() / "fuzzed_tokenizer"
    target.mkdir(exist_ok=True)
    for file in gemma[1].iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    file = target / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "config.json"]))
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + 1] = data.draw(st.binary(max_size=3))
    file.write_bytes(raw)
    try:
        open_tokenizer(target)
    except ModelError as error:
        assert error.what


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer.json"):
        open_tokenizer(tmp_path)
