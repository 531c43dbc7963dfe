"""Who can answer: the port that the copilot asks through, and any OpenAI-compatible host behind it.

The embedded engine is a second implementation of the port; it lives with the commands that start it, because this
folder never imports the engine.
"""

from __future__ import annotations

import ipaddress
import time
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import orjson

from midwatch.errors import ProviderError, SettingsError
from midwatch.gateway.wire import ChatRequest, Completion, TokenLogprob
from midwatch.settings import ProviderSettings

RETRYABLE_STATUS = {408, 409, 425, 429, 498, 500, 502, 503, 504}
MAX_ANSWER_BYTES = 16 * 1024 * 1024


class Provider(Protocol):
    """Anything that answers a `ChatRequest`. `remote` providers see only what passed the redactor."""

    @property
    def name(self) -> str:
        """Short name for pages and ledgers."""

    @property
    def remote(self) -> bool:
        """True where bytes leave the user's machine."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer whole. Raises `ProviderError`; cancelling the task cancels the work."""

    async def aclose(self) -> None:
        """Give connections back."""


class OpenAIProvider:
    """A host that speaks `/chat/completions`: the local engine server, vLLM, Groq or any other.

    Streams, so that the time to the first token is the client's truth and a cancelled call stops upstream.
    `usd_per_hour` prices a local host by its time instead of its tokens.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        *,
        name: str,
        remote: bool,
        usd_per_hour: float = 0.0,
    ) -> None:
        self.name = name
        self.remote = remote
        self._settings = settings
        self._usd_per_hour = usd_per_hour
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, request: ChatRequest) -> Completion:
        """Ask once. Raises `ProviderError` with `retryable` set from the host's status."""
        headers = {"Accept": "text/event-stream"}
        if self._settings.api_key is not None:
            headers["Authorization"] = f"Bearer {self._settings.api_key.get_secret_value()}"
        started = time.perf_counter()
        answer = _Answer()
        url = self._settings.base_url.rstrip("/") + "/chat/completions"
        try:
            async with self._client().post(
                url,
                data=orjson.dumps(self._body(request)),
                headers={
                    **headers,
                    "Content-Type": "application/json",
                },
            ) as response:
                if response.status != 200:
                    raise _refused(self.name, response.status, await response.content.read(2000))
                received = 0
                async for line in response.content:
                    received += len(line)
                    if received > MAX_ANSWER_BYTES:
                        raise ProviderError(f"{self.name} sent more than {MAX_ANSWER_BYTES} bytes.", retryable=False)
                    if answer.take(line) and answer.ttft_ms is None:
                        answer.ttft_ms = (time.perf_counter() - started) * 1000
        except TimeoutError:
            raise ProviderError(f"{self.name} did not answer within {self._settings.timeout_s:g} s.") from None
        except aiohttp.ClientError as error:
            raise ProviderError(
                f"{self.name} at {self._settings.base_url} cannot be reached ({type(error).__name__}).",
                "Check that it runs and that base_url is right.",
            ) from None
        if not answer.done:
            raise ProviderError(f"{self.name} closed the stream before the answer was whole.")
        latency_ms = (time.perf_counter() - started) * 1000
        settings = self._settings
        cost_usd = answer.prompt_tokens * settings.usd_per_mtok_in / 1e6
        cost_usd += answer.completion_tokens * settings.usd_per_mtok_out / 1e6
        cost_usd += self._usd_per_hour * latency_ms / 3_600_000
        return Completion(
            text="".join(answer.text),
            finish_reason=answer.finish_reason,
            provider=self.name,
            model=answer.model or settings.model,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            ttft_ms=answer.ttft_ms or latency_ms,
            latency_ms=latency_ms,
            cost_usd=cost_usd,
            logprobs=tuple(answer.logprobs),
        )

    async def aclose(self) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s, sock_connect=10)
            self._session = aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20)
        return self._session

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": request.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.top_logprobs is not None and not self.remote:  # several hosts refuse the field outright
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return body


def engine_at(url: str, model: str, *, usd_per_hour: float) -> OpenAIProvider:
    """An engine that runs already. It counts as remote, and gets redacted text, unless it listens on this machine.

    `usd_per_hour` is what this machine costs; it prices a local engine only. Raises `SettingsError` for what is no URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"--engine-url {url} is not a URL.", "Write it as http://127.0.0.1:8011.")
    try:
        address = ipaddress.ip_address(parts.hostname)
        local = address.is_loopback or address.is_unspecified  # 0.0.0.0 is where a server that listens everywhere is
    except ValueError:
        local = parts.hostname == "localhost"
    return OpenAIProvider(
        ProviderSettings(base_url=url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1", model=model),
        name="engine",
        remote=not local,
        usd_per_hour=usd_per_hour if local else 0.0,
    )


class _Answer:
    """The state of a stream as its server-sent events come in."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason = ""
        self.model = ""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.ttft_ms: float | None = None
        self.done = False

    def take(self, line: bytes) -> bool:
        """Read one line; True when it carried content."""
        if not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return False
        try:
            event = orjson.loads(data)
            if "error" in event:
                raise ProviderError(f"The host failed mid-stream: {str(event['error'].get('message'))[:200]}")
            self.model = event.get("model") or self.model
            usage = event.get("usage")
            if usage:
                self.prompt_tokens = int(usage["prompt_tokens"])
                self.completion_tokens = int(usage["completion_tokens"])
            content = ""
            for choice in event.get("choices", ()):
                content += (choice.get("delta") or {}).get("content") or ""
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                self._take_logprobs(choice.get("logprobs"))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError):
            raise ProviderError("The host sent an event that is not an OpenAI chat chunk.") from None
        if content:
            self.text.append(content)
        return bool(content)

    def _take_logprobs(self, logprobs: dict[str, Any] | None) -> None:
        for item in (logprobs or {}).get("content") or ():
            top = tuple((other["token"], float(other["logprob"])) for other in item.get("top_logprobs") or ())
            self.logprobs.append(TokenLogprob(token=item["token"], logprob=float(item["logprob"]), top=top))


def _refused(name: str, status: int, body: bytes) -> ProviderError:
    try:
        detail = str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail = body.decode("utf-8", "replace")
    next_step = {
        401: "Check its api_key.",
        403: "Check its api_key.",
        404: "Check its base_url and model.",
        429: "It asks to be called less often.",
    }.get(status, "")
    return ProviderError(f"{name} answered {status}: {detail[:200]}", next_step, retryable=status in RETRYABLE_STATUS)
