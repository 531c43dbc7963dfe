"""The errors a person may meet. Each says what was wrong, what is allowed, and what to do next.

MidwatchError
├── SettingsError        a setting is missing, unknown or out of range
├── ModelError           weights are missing, damaged, half-written or of an unknown kind
│   └── DownloadError    the network, the disk or the hash said no while fetching them
├── TuningError          a recipe, a data set or a training run cannot go on as it is
├── FoundryError         a fault cannot be made here, or a file holds no incidents
├── RequestError         a caller's request cannot be served as written (HTTP 4xx)
└── ProviderError        a model host did not answer, or answered nonsense (worth a retry or another host)
"""

from __future__ import annotations


class MidwatchError(Exception):
    """A problem that a person can act on.

    `what` states the problem, `next_step` the command or change that mends it. Both are whole sentences,
    because they are shown as they are, in a terminal or in an HTTP body.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(f"{what} {next_step}".strip())
        self.what = what
        self.next_step = next_step


class SettingsError(MidwatchError):
    """A setting is missing, unknown or out of range."""


class ModelError(MidwatchError):
    """Weights are missing, damaged, half-written or of a kind that we do not read."""


class DownloadError(ModelError):
    """Fetching weights failed: no network, no space, or the wrong bytes."""


class TuningError(MidwatchError):
    """A recipe, a data set, a checkpoint or a training run cannot go on as it is."""


class FoundryError(MidwatchError):
    """A fault cannot be made on this machine, or a file holds no recordings or incidents."""


class RequestError(MidwatchError):
    """A request cannot be served as written. `status` is the HTTP status that says so (4xx)."""

    def __init__(self, what: str, next_step: str = "", *, status: int = 400, param: str | None = None) -> None:
        super().__init__(what, next_step)
        self.status = status
        self.param = param


class ProviderError(MidwatchError):
    """A model host failed. `retryable` is False where asking again cannot help (wrong key, unknown model)."""

    def __init__(self, what: str, next_step: str = "", *, retryable: bool = True) -> None:
        super().__init__(what, next_step)
        self.retryable = retryable
