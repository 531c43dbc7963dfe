"""Which LoRA adapters are loaded, under which slot of the backend, and which may be used by new requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from midwatch.engine.batch import Backend
from midwatch.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An adapter in its slot. `namespace` keeps its keys and values apart from every other's, reloads included."""

    name: str
    path: Path
    slot: int
    namespace: bytes


class AdapterTable:
    """Adapters by name. Names are read from any thread; loading and unloading happen between steps."""

    def __init__(self, backend: Backend, max_adapters: int) -> None:
        self._backend = backend
        self._free = list(range(max_adapters))[::-1]
        self._max = max_adapters
        self._loaded: dict[str, Loaded] = {}
        self._leaving: set[Loaded] = set()
        self._generation = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for."""
        return tuple(self._loaded)

    @property
    def has_leaving(self) -> bool:
        """True while an unloaded adapter is still used by a running request."""
        return bool(self._leaving)

    def find(self, name: str | None) -> Loaded | None:
        """The adapter of that name; None for None. Raises `RequestError` (404) if it is not loaded."""
        if name is None:
            return None
        found = self._loaded.get(name)
        if found is None:
            raise RequestError(
                f"The adapter {name[:100]!r} is not loaded.",
                f"Loaded are: {', '.join(self._loaded) or 'none'}.",
                status=404,
                param="model",
            )
        return found

    def load(self, name: str, path: Path) -> None:
        """Read an adapter and give it a slot.

        Raises `RequestError` (409) if the name is taken or no slot is free, `ModelError` if it does not fit the base.
        """
        if name in self._loaded:
            raise RequestError(f"An adapter {name[:100]!r} is loaded already.", "Unload it first.", status=409)
        if not self._free:
            raise RequestError(
                f"All {self._max} adapter slots are taken.", "Unload one, or raise engine.max_adapters.", status=409
            )
        from midwatch.engine.lora import read_adapter

        adapter = read_adapter(path, self._backend.config, name)
        slot = self._free[-1]
        self._backend.load_adapter(slot, adapter)
        self._free.pop()
        self._generation += 1
        namespace = f"{self._generation}:{name}".encode()
        self._loaded[name] = Loaded(name=name, path=path, slot=slot, namespace=namespace)

    def unload(self, name: str, slots_in_use: set[int]) -> None:
        """Refuse an adapter to new requests; its slot is free once no running request uses it."""
        found = self.find(name)
        assert found is not None
        del self._loaded[name]
        self._leaving.add(found)
        self.sweep(slots_in_use)

    def sweep(self, slots_in_use: set[int]) -> None:
        """Let go of unloaded adapters that nobody uses any more."""
        for item in [item for item in self._leaving if item.slot not in slots_in_use]:
            self._leaving.remove(item)
            self._backend.unload_adapter(item.slot)
            self._free.append(item.slot)
