"""What was said, by whom and when, before it is written down: the lines that an incident's log is made of."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from midwatch.foundry.bank import message_of
from midwatch.foundry.collectors import OF_SYSLOG, Voice
from midwatch.foundry.names import Cast, Printing
from midwatch.foundry.pools import listed
from midwatch.foundry.recording import Recording
from midwatch.foundry.shapes import MERGING, POSTGRES_TITLES, Printer, Who, printer

Role = Literal["truth", "symptom", "before", "healthy", "recovery", "consequence", "injected", "secret", "other_fault"]


@dataclass(kw_only=True, slots=True)
class Said:
    """One line. `say` gives its text for the moment of its host's clock; lines of one `breath` stay together."""

    at: float
    voice: Voice
    say: Callable[[float], str]
    level: str
    role: Role
    breath: float


@dataclass(kw_only=True)
class Stage:
    """Where an incident plays: its names, its random source and the programs that speak in it."""

    source: random.Random
    cast: Cast
    voices: dict[str, Voice] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    namespace: str = "default"
    collector: str = "raw"
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)

    def names_for(self, recording: Recording) -> dict[str, str]:
        """The new names for the old ones of a recording, the same each time that it is played here."""
        if recording.id not in self.renamed:
            self.renamed[recording.id] = self.cast.rename(recording.names)
        return self.renamed[recording.id]

    def voice(self, key: str, program: str, service: str = "", host: str = "") -> Voice:
        """The voice of a program, made at its first use: a team's own service, or a product under its own name."""
        if key not in self.voices:
            own = bool(service) or program in OWN
            name = service or (self.cast.another("service") if own else self._product(program))
            self.voices[key] = Voice(
                service=name,
                program=name if own else _TAGS.get(program, program),
                host=host or self._host(),
                pod=self.cast.pod_of(name),
                namespace=self.namespace,
                pid=self.source.choice((1, 7, self.source.randint(200, 64_000), self.source.randint(200, 64_000))),
                own=own,
            )
        return self.voices[key]

    def _product(self, program: str) -> str:
        """What an installation of a product is called."""
        if program in MACHINERY:
            return _TAGS.get(program, program)
        word = self.cast.another("service").split("-")[0]
        return self.source.choice((program, f"{word}-{program}", f"{program}-{self.source.randint(0, 2)}"))

    def _host(self) -> str:
        if not self.hosts or (len(self.hosts) < 6 and self.source.random() < 0.3):
            self.hosts.append(self.cast.another("host"))
        return self.source.choice(self.hosts)


class Speech:
    """One voice and the printer that it uses: makes lines out of messages of the bank."""

    def __init__(self, stage: Stage, voice: Voice, shape: str) -> None:
        self._stage = stage
        self.voice = voice
        self.shape = shape
        host = "" if stage.collector in OF_SYSLOG else voice.host
        who = Who(service=voice.service, program=voice.program, host=host, pid=voice.pid)
        self._print: Printer = printer(shape, who, stage.source)

    def say(
        self,
        texts: Sequence[str],
        at: float,
        *,
        role: Role,
        level: str,
        printing: Printing,
        tells: Callable[[str], bool] = lambda text: True,
    ) -> list[Said]:
        """Say messages one after the other from a moment on. Lines that tell nothing are no truth but a symptom."""
        lines: list[Said] = []
        for message in messages(texts):
            said = self.lines(message, at, level=level, role=role, printing=printing)
            if role == "truth" and len(said) == len(message):
                said = [
                    item if tells(text) else replace(item, role="symptom")
                    for item, text in zip(said, message, strict=True)
                ]
            lines += said
            at += 10 ** self._stage.source.uniform(-3, 0.8)
        return lines

    def lines(self, texts: Sequence[str], at: float, *, level: str, role: Role, printing: Printing) -> list[Said]:
        """The lines of one message (its first text and those that continue it), said at a moment."""
        marked, first = message_of(texts[0])
        level = marked if marked and marked != "more" else level
        rest = [message_of(text)[1] for text in texts[1:]]
        filled = [printing.fill(text, at) for text in (first, *rest)]
        if self.shape in MERGING:
            filled = ["\n".join(filled)]
        marker = "##[error]" if self.shape == "gha" and marked in ("error", "fatal") else ""
        return [
            Said(
                at=at,
                voice=self.voice,
                say=self._sayer(marker + text if number == 0 else text, level, number > 0),
                level=level,
                role=role,
                breath=at,
            )
            for number, text in enumerate(filled)
        ]

    def _sayer(self, text: str, level: str, continues: bool) -> Callable[[float], str]:
        bare = continues and self.shape not in _PREFIXING
        if self.shape == "postgres" and text.split(" ", 1)[0] in POSTGRES_TITLES:
            bare = False
        if bare:
            return lambda at: text
        return lambda at: self._print(level, text, at)


def messages(texts: Sequence[str]) -> list[list[str]]:
    """Texts of the bank in messages: each with the texts that continue it (a stack trace)."""
    grouped: list[list[str]] = []
    for text in texts:
        level, message = message_of(text)
        if grouped and (level == "more" or (not level and _GOES_ON.match(message))):
            grouped[-1].append(text)
        else:
            grouped.append([text])
    return grouped


_GOES_ON = re.compile(
    r"[ \t]|\[signal |goroutine \d|Caused by: |\.\.\. \d+ more|#\d+ |created by |main\.\S+\(|stack backtrace:"
    r"|note: run with"
)
"""How a line begins that belongs to the one before it: the parts of traces."""
_PREFIXING = frozenset(("syslog", "kernel", "plain", "access", "gha"))
"""Shapes in which a continuing line is printed as any other."""
OWN = frozenset(
    listed("""
    java python go node dotnet ruby php rust elixir erlang celery java-app python-app node-app go-service cpp-service
    rust-service rails-api feature-flags ml-training mobile pytorch tensorflow aws azure gcp cloudflare fastly stripe
    twilio salesforce auth0 snowflake saml maps curl
    """)
)
"""Families whose messages are printed by a team's own services (those of a cloud by whoever calls it)."""
MACHINERY = frozenset(
    listed("""
    kubernetes kubelet linux kernel systemd windows containerd crio cri-o docker dockerd podman ssh openssh sshd cron
    debian redhat postfix slurm ceph vsphere vmware openstack proxmox nfs iscsi pacemaker keepalived frr cisco bluegene
    cilium calico karpenter cert-manager openshift csi-aws-ebs csi-aws-efs csi-ceph longhorn velero metallb supervisord
    """)
)
"""Programs of the machine and the cluster: one on each host, under its own name."""
_TAGS = {
    "kubernetes": "kubelet",
    "linux": "kernel",
    "kernel": "kernel",
    "systemd": "systemd",
    "postgresql": "postgres",
    "openssh": "sshd",
    "ssh": "sshd",
    "cron": "CRON",
    "docker": "dockerd",
    "mariadb": "mariadbd",
    "mongodb": "mongod",
    "redis": "redis-server",
    "rabbitmq": "rabbitmq-server",
    "nats": "nats-server",
    "mysql": "mysqld",
}
