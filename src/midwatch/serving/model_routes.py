"""What can be asked about the model without generating: its name, its adapters, its tokens.

`/v1/models` is OpenAI's; `/tokenize`, `/detokenize`, `/v1/load_lora_adapter` and `/v1/unload_lora_adapter` have vLLM's
bodies and answers. Adapters are loaded only from below one configured folder, since a path in a request is a
stranger's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from midwatch import __version__
from midwatch.errors import ModelError, RequestError
from midwatch.serving.bodies import Body, read, reply
from midwatch.serving.host import Host
from midwatch.serving.protocol import MAX_MESSAGES, ChatMessage


class TokenizeRequest(Body):
    """A text in `prompt`, or a conversation in `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] = Field(default_factory=list, max_length=MAX_MESSAGES)
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("send either prompt or messages")
        return self


class DetokenizeRequest(Body):
    """Token ids to be read as text."""

    model: str | None = None
    tokens: list[int]


class LoadAdapterRequest(Body):
    """vLLM's body: a name to ask for it by, and the folder of a LoRA adapter in peft's layout."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapterRequest(Body):
    """vLLM's body."""

    lora_name: str
    lora_int_id: int | None = None


class ModelRoutes:
    """Handlers for one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`: the model, then its adapters."""
        return reply({"object": "list", "data": [self._card(name) for name in (self._host.name, *self._host.adapters)]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{model}`."""
        return reply(self._card(self._host.find(request.path_params["model"]) or self._host.name))

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`."""
        body = await read(request, TokenizeRequest)
        served, _ = self._host.ready(body.model)
        tokenizer = served.tokenizer
        if body.prompt is not None:
            ids = tokenizer.encode(body.prompt)
        else:
            ids = tokenizer.chat_prompt([message.as_turn() for message in body.messages])
        strings = None
        if body.return_token_strs:
            strings = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in ids]
        return reply({"count": len(ids), "max_model_len": served.max_model_len, "tokens": ids, "token_strs": strings})

    async def detokenize(self, request: Request) -> Response:
        """`POST /detokenize`."""
        body = await read(request, DetokenizeRequest)
        served, _ = self._host.ready(body.model)
        last = served.tokenizer.vocab_size - 1
        if any(not 0 <= token_id <= last for token_id in body.tokens):
            raise RequestError("tokens holds ids outside the vocabulary.", f"Send 0 to {last}.", param="tokens")
        return reply({"prompt": served.tokenizer.decode(body.tokens)})

    async def load_adapter(self, request: Request) -> Response:
        """`POST /v1/load_lora_adapter`."""
        body = await read(request, LoadAdapterRequest)
        served, _ = self._host.ready()
        if body.lora_name == self._host.name:
            what = f"{body.lora_name!r} is the name of the model."
            raise RequestError(what, "Give the adapter another.", status=409, param="lora_name")
        path = _below(_root(served.adapter_dir), body.lora_path)
        try:
            await served.engine.load_adapter(body.lora_name, path)
        except ModelError as error:  # the file is the caller's choice, so the fault is theirs
            raise RequestError(error.what, error.next_step, param="lora_path") from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """`POST /v1/unload_lora_adapter`."""
        body = await read(request, UnloadAdapterRequest)
        served, _ = self._host.ready()
        _root(served.adapter_dir)
        await served.engine.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def version(self, _: Request) -> Response:
        """`GET /version`."""
        return reply({"version": __version__})

    def _card(self, name: str) -> dict[str, Any]:
        served, is_base = self._host.served, name == self._host.name
        return {
            "id": name,
            "object": "model",
            "created": self._host.created,
            "owned_by": "midwatch",
            "root": name,
            "parent": None if is_base else self._host.name,
            "max_model_len": served.max_model_len if served is not None else None,
        }


def _root(adapter_dir: Path | None) -> Path:
    if adapter_dir is None:
        raise RequestError(
            "Adapters cannot be loaded or unloaded while this server runs.",
            "Set engine.adapter_dir to the folder to load from, or engine.adapters to load some at the start.",
            status=403,
        )
    return adapter_dir.resolve()


def _below(root: Path, path: str) -> Path:
    """The path, if it lies below the configured folder; links are followed before that is judged."""
    if "\0" in path or not (found := (root / path).resolve()).is_relative_to(root):
        raise RequestError(
            "lora_path lies outside engine.adapter_dir.", "Name a folder below it.", status=403, param="lora_path"
        )
    return found
