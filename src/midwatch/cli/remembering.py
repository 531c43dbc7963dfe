"""The memory behind the verbs: the store, the sentence encoder if one is set, and the recall over both.

The encoder is wired here because the copilot never imports the engine. Its weights are looked for at once (a missing
model is said at the start) and read when the first text is encoded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from midwatch.errors import MidwatchError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from midwatch.copilot.recall import Embedder, Recall
    from midwatch.copilot.store import Store
    from midwatch.engine.sentence_encoder import SentenceEncoder
    from midwatch.settings import Settings

_log = logging.getLogger("midwatch.copilot")


class LazyEncoder:
    """A sentence encoder that reads its weights when it is first asked. Safe to call from several threads."""

    def __init__(self, path: Path, *, name: str) -> None:
        self.name = name
        self._path = path
        self._lock = threading.Lock()
        self._encoder: SentenceEncoder | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A row of length one for each text. Raises `ModelError` for weights that cannot be read."""
        with self._lock:
            if self._encoder is None:
                from midwatch.engine.sentence_encoder import SentenceEncoder

                self._encoder = SentenceEncoder(self._path, name=self.name)
        return self._encoder(texts)


def embedder(settings: Settings) -> Embedder | None:
    """The encoder that the settings name, or None. Raises `ModelError` where it is not on this machine."""
    if not settings.copilot.embeddings:
        return None
    from midwatch.engine import hub

    name = settings.copilot.embeddings
    return LazyEncoder(hub.resolve(name, settings.cache_dir), name=name)


def recall(settings: Settings, store: Store) -> Recall:
    """The recall over a store."""
    from midwatch.copilot.recall import Recall

    return Recall(store, embedder(settings))


@contextmanager
def warming(recall: Recall | None) -> Iterator[None]:
    """Make a recall ready on a thread while the block runs; what is not encoded by its end waits for the next start."""
    ended = threading.Event()

    def warm() -> None:
        assert recall is not None
        try:
            recall.warm(ended.is_set)
        except MidwatchError as error:  # words alone still work
            _log.warning("recall: %s", error)

    thread = threading.Thread(target=warm, name="midwatch-recall", daemon=True)
    if recall is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if recall is not None:
            thread.join()


@contextmanager
def open_store() -> Iterator[tuple[Settings, Store]]:
    """The settings and the store that they name; an app that runs beside it notices what changes."""
    from midwatch import settings as settings_module
    from midwatch.copilot.store import Store

    settings = settings_module.load()
    store = Store(settings.resolved_database_url, settings.copilot)
    try:
        yield settings, store
    finally:
        store.close()
