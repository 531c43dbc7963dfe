"""Who is in this incident? Names drawn by a seed, the same wherever they stand."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from midwatch.errors import FoundryError
from midwatch.foundry import pools, slots
from midwatch.foundry.times import LazyForms

_ALIASES = {"database": "db", "namespace": "ns", "container": "service", "process": "process", "index": "table"}
_KEPT = frozenset(
    pools.listed("""
    localhost root postgres postgresql redis nginx mysql mariadb rabbitmq kafka mosquitto haproxy memcached python java
    node nobody default admin guest www-data system kernel master main public app api db
    """)
)
"""Words that are a program's own as often as a name, so that replacing them would spoil its messages."""
_HTTP_METHOD = re.compile(r"\{method\}(?= (?:/|https?:|\{path|\{url))")
"""A method of HTTP, by what follows it; elsewhere `{method}` is one of a class."""
_ROUTE = re.compile(
    r"(?<=GET )\{path\}|(?<=POST )\{path\}|(?<=PUT )\{path\}|(?<=DELETE )\{path\}|(?<=\{method\} )\{path\}"
    r"|(?<=Exception on )\{path\}|(?<=Server Error: )\{path\}"
)
"""A path of a URL, by what stands before it; elsewhere `{path}` is one of a file system."""
_POD_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


class Cast:
    """The names of one incident. The same slot always gives the same name; two slots never give the same one."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._names: dict[str, str] = {}
        self._taken: set[str] = set(_KEPT)

    def name(self, kind: str, slot: str = "") -> str:
        """The name of a slot (`service2`), drawn at its first use. Raises `KeyError` for a kind without names."""
        slot = slot or kind
        if slot not in self._names:
            self._names[slot] = self._made(kind, slot)
        return self._names[slot]

    def another(self, kind: str) -> str:
        """A name that stands for nothing yet."""
        return self.name(kind, f"{kind}#{len(self._names)}")

    def pod_of(self, service: str) -> str:
        """The name of a pod of a service, the same each time."""
        slot = f"pod of {service}"
        if slot not in self._names:
            tail = "".join(self._source.choice(_POD_LETTERS) for _ in range(5))
            middle = "".join(self._source.choice(_POD_LETTERS) for _ in range(self._source.choice((9, 10))))
            stateful = self._source.random() < 0.2
            self._names[slot] = f"{service}-{self._source.randrange(3)}" if stateful else f"{service}-{middle}-{tail}"
        return self._names[slot]

    def is_service(self, name: str) -> bool:
        """Whether a name stands for a service."""
        return any(value == name and slot.startswith("service") for slot, value in self._names.items())

    def aliases_of(self, name: str) -> tuple[str, ...]:
        """Other names of the same thing that a log may show: a service's pod, a pod's service, a host's short name."""
        found: list[str] = []
        for slot, value in self._names.items():
            if slot == f"pod of {name}":
                found.append(value)
            elif value == name and slot.startswith("pod of "):
                found.append(slot.removeprefix("pod of "))
            elif value == name and slot.rstrip("0123456789#") in ("host", "node") and "." in name:
                found.append(name.split(".", maxsplit=1)[0])
        return tuple(found)

    def rename(self, names: Mapping[str, str]) -> dict[str, str]:
        """New names for the old names of a recording (old name to kind). Raises `FoundryError` for an unknown kind."""
        renamed: dict[str, str] = {}
        for old, kind in names.items():
            if not old or old.lower() in _KEPT:
                continue
            slot_kind = _ALIASES.get(kind, kind)
            if slot_kind not in pools.MAKERS and slot_kind not in slots.NAMES:
                allowed = ", ".join(sorted({*pools.MAKERS, *_ALIASES}))
                raise FoundryError(f"A recording says that {old!r} names a {kind}.", f"It can name a {allowed}.")
            renamed[old] = self.another(slot_kind)
        return renamed

    def _made(self, kind: str, slot: str) -> str:
        number = slot.removeprefix(kind)
        if kind == "pod":
            return self.pod_of(self.name("service", "service" + number))
        if kind == "container":
            return self.name("service", "service" + number)
        if kind == "url":
            return f"https://{self.name('domain', 'domain' + number)}/v1/{pools.MAKERS['table'](self._source)}"
        if kind == "email":
            return f"{pools.MAKERS['user'](self._source)}@{self.name('domain', 'domain' + number)}"
        for _ in range(100):
            made = pools.MAKERS[kind](self._source)
            if made not in self._taken:
                break
        else:
            made = f"{made}-{len(self._taken)}"
        self._taken.add(made)
        return made


class Printing:
    """Values of slots for one printing of a message: names of the cast, numbers and ids drawn once for the printing."""

    def __init__(self, cast: Cast, source: random.Random, given: Mapping[str, str] | None = None) -> None:
        self._cast = cast
        self._source = source
        self._times: Mapping[str, str] = {}
        self._drawn: dict[str, str] = dict(given or {})

    def fill(self, text: str, at: float) -> str:
        """A message of the bank, said at a moment, with its slots filled. `given` values stand before drawn ones."""
        if "{" not in text:
            return text
        self._times = LazyForms(at)
        text = _HTTP_METHOD.sub("{?GET|GET|GET|POST|PUT|DELETE}", _ROUTE.sub("{route}", text))
        return slots.fill(text, self._value, self._source)

    def _value(self, kind: str, slot: str) -> str:
        if kind in slots.TIMES:
            return self._times[kind]
        if slot not in self._drawn and kind in slots.NAMES:
            return self._cast.name(kind, slot)
        if slot not in self._drawn:
            self._drawn[slot] = self._draw(kind)
        return self._drawn[slot]

    def _draw(self, kind: str) -> str:
        source = self._source
        if kind in slots.NUMBERS:
            low, high = slots.NUMBERS[kind]
            return str(source.randint(low, high))
        if kind == "ip":
            return address(source)
        if kind == "ver":
            return f"{source.randint(0, 24)}.{source.randint(0, 40)}.{source.randint(0, 30)}"
        digits = f"{source.getrandbits(160):040x}"
        if kind == "uuid":
            return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"
        return digits[: {"hex": 12, "commit": source.choice((7, 8, 40))}[kind]]


def address(source: random.Random) -> str:
    """A private IPv4 address."""
    first = source.choice(("10.{}.{}.{}", "10.{}.{}.{}", "172.18.{1}.{2}", "192.168.{1}.{2}"))
    return first.format(source.randrange(256), source.randrange(256), source.randrange(2, 254))
