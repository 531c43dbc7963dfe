"""The vocabulary of a folder in Hugging Face's layout, through the `tokenizers` library.

`tokenizer.json` says how text is split and merged; its added tokens are taken out before the library sees it, so that
no text can turn into one. `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json` and `config.json`
say which tokens begin and end a text and how a conversation is laid out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from midwatch.engine.checkpoint import Fields
from midwatch.engine.safetensors_checkpoint import read_json
from midwatch.engine.sentencepiece import SPACE
from midwatch.engine.vocabulary import (
    BYTE,
    BYTE_TOKEN,
    NORMAL,
    Vocabulary,
    byte_tokens,
    end_ids,
    plain_encoder,
)
from midwatch.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENIZER_BYTES = 1 << 26
MAX_TEMPLATE_BYTES = 1 << 18
MAX_PADDING = 1 << 16


def from_folder(path: Path) -> Vocabulary:
    """The vocabulary of a folder in Hugging Face's layout. Raises `ModelError` for what is missing or not read."""
    source = path / "tokenizer.json"
    found = _read_tokenizer(source)
    settings, model_config = _optional_json(path / "tokenizer_config.json"), read_json(path / "config.json")
    added = [item for item in found.get("added_tokens") or [] if _is_added_token(item)]
    tokens, padding = _tokens(found, added, Fields(path / "config.json", model_config).whole("vocab_size"), source)
    special = {
        item["content"]: item["id"]
        for item in added
        if item["id"] < len(tokens) and tokens[item["id"]] == item["content"] and not item["content"].isspace()
    }
    controls = [special.get(item["content"]) for item in added if item.get("special")]
    control_ids = frozenset(index for index in (*controls, *padding) if index is not None)
    byte_level = _is_byte_level(found, source)
    # Added tokens are found inside any text; only those of white space are part of how text is spelled.
    spaces = [item for item in added if item["content"].isspace() and not item.get("special")]
    backend = _load(
        {**found, "added_tokens": spaces, "post_processor": None, "truncation": None, "padding": None}, source
    )
    spell = plain_encoder(backend, tokens, frozenset(special.values()) | control_ids, byte_level=byte_level)
    types = [BYTE if not byte_level and BYTE_TOKEN.fullmatch(token) else NORMAL for token in tokens]
    first = _first_token(found.get("post_processor"))
    bos_name, eos_name = _name(settings.get("bos_token")) or first, _name(settings.get("eos_token"))
    adds_bos = settings.get("add_bos_token")
    ends = {special.get(eos_name), *_eos_ids(model_config), *_eos_ids(_optional_json(path / "generation_config.json"))}
    return Vocabulary(
        tokens=tokens,
        byte_level=byte_level,
        spell=spell,
        control_ids=control_ids,
        special_ids=special,
        byte_ids=byte_tokens(tokens, types),
        bos_id=special.get(bos_name),
        eos_ids=end_ids(tokens, control_ids, ends, source),
        eos_name=eos_name,
        adds_bos=adds_bos if isinstance(adds_bos, bool) else first != "" and first == bos_name,
        space_prefix=not byte_level and any(tokens[index].startswith(SPACE) for index in spell("a")[:1]),
        template=_template(path, settings),
    )


def _read_tokenizer(path: Path) -> dict[str, Any]:
    import orjson

    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ModelError(f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes.")
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.", "A model's folder needs a tokenizer.json.") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {str(error)[:200]}.", "Fetch it again.") from None
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ModelError(f"{path} holds no BPE model; the engine reads no other kind.", "Choose another model.")
    if not isinstance(found.get("added_tokens") or [], list):
        raise ModelError(f"{path}: added_tokens is not a list.", "Fetch it again.")
    return dict(found)


def _load(tokenizer: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    import orjson
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(orjson.dumps(tokenizer).decode())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exceptions, and panics of the library, which are no Exceptions
        raise ModelError(f"{path} cannot be read: {str(error)[:200]}.", "Fetch it again.") from None


def _is_added_token(item: object) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("content"), str)
        and item["content"] != ""
        and isinstance(item.get("id"), int)
        and item["id"] >= 0
    )


def _tokens(
    found: dict[str, Any], added: list[dict[str, Any]], vocab_size: int, path: Path
) -> tuple[list[str], list[int]]:
    """Every token by id, as many as the model has rows; and the ids that stand for nothing."""
    by_id = {index: token for token, index in found["model"]["vocab"].items()}
    if not all(isinstance(index, int) and 0 <= index < vocab_size for index in by_id):
        raise ModelError(f"{path} numbers tokens beyond the {vocab_size} that the model has.", "Fetch it again.")
    by_id.update((item["id"], item["content"]) for item in added if item["id"] < vocab_size)
    padding = vocab_size - len(by_id)
    if padding > MAX_PADDING:
        raise ModelError(f"{path} has {len(by_id)} tokens; the model has {vocab_size}.", "They do not belong together.")
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    return tokens, [index for index in range(vocab_size) if index not in by_id]


def _is_byte_level(found: dict[str, Any], path: Path) -> bool:
    """True for GPT-2's alphabet of bytes, False for `▁` and `<0xNN>`; decided by the decoder."""
    decoder = found.get("decoder")
    steps = [decoder, *(decoder.get("decoders") or [])] if isinstance(decoder, dict) else []
    kinds = {step.get("type") for step in steps if isinstance(step, dict)}
    if not kinds & {"ByteLevel", "ByteFallback"}:
        raise ModelError(f"{path} decodes in a way that the engine does not know.", "Choose another model.")
    return "ByteLevel" in kinds


def _first_token(processor: object) -> str:
    """The control token that a tokenizer puts before every text, or an empty string."""
    if not isinstance(processor, dict):
        return ""
    for step in [processor, *(processor.get("processors") or [])]:
        single = step.get("single") if isinstance(step, dict) else None
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(special, dict):
            return str(special.get("id"))
    return ""


def _eos_ids(config: dict[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int) and item >= 0]


def _name(token: object) -> str:
    """The text of a token that a config gives as a string, or as an object around one."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _template(path: Path, settings: dict[str, Any]) -> object:
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_bytes()[: MAX_TEMPLATE_BYTES + 1].decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"Cannot read {file}: {error}.", "Fetch it again.") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        return named.get("default")
    return template


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
