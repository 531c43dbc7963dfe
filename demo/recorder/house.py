"""A throw-away house: private mounts, host name, network, and process ids, so that nothing outlives a recording.

Everything runs under `unshare`: /srv is an empty tmpfs, the network is a loopback that owns 10.0.0.0/8, and when the
first process of the house ends the kernel ends all others. The programs see neutral paths, names and process ids.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from recorder.incident import Incident, RecordError

HOST = "shop-1"
SRV = Path("/srv")
ADDRESS = {
    "db.shop.internal": "10.20.0.11",
    "cache.shop.internal": "10.20.0.12",
    "www.shop.internal": "10.20.0.20",
    "catalog.shop.internal": "10.20.0.21",
    "mail.shop.internal": "10.20.0.25",
    "pricing.shop.internal": "10.20.0.30",
    "alerts.shop.internal": "10.20.0.90",
}
PACKAGES = {
    "postgres": "postgresql",
    "psql": "postgresql-client",
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "openssl": "openssl",
    "curl": "curl",
    "tar": "tar",
    "unshare": "util-linux",
    "mount": "mount",
    "python3": "python3",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "libpq.so.5": "libpq5",
}
_SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
CGROUP = "shop-thumbnailer"


def find(program: str) -> str:
    """Path of a program. Raises `RecordError` that names the Debian package if it is missing."""
    if program == "postgres":
        found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))]
        path = found[-1] if found else shutil.which("postgres", path=_SEARCH)
    elif program.startswith("lib"):
        path = next((str(p) for p in Path("/usr/lib").glob(f"**/{program}")), None)
    else:
        path = shutil.which(program, path=_SEARCH)
    if path is None:
        raise RecordError(
            f"{program} is not installed. Install the Debian package {PACKAGES[program]} "
            f"(apt-get install {PACKAGES[program]}) and record again."
        )
    return path


def check(incident: Incident, *, with_alert: bool) -> None:
    """Raise `RecordError` if this machine cannot record the incident."""
    if sys.platform != "linux":
        raise RecordError("Recording needs Linux namespaces; run it on Linux or in a virtual machine.")
    alertmanager = ("prometheus-alertmanager",) if incident.alert and with_alert else ()
    for program in ("unshare", "mount", "python3", *incident.needs, *alertmanager):
        find(program)
    if incident.root and os.geteuid() != 0:
        raise RecordError(f"{incident.name} needs another user, a memory cgroup or the kernel log; record it as root.")
    if Path(__file__).resolve().is_relative_to(SRV):
        raise RecordError("The recorder mounts an empty /srv; move this clone out of /srv and record again.")


def unshare(command: list[str]) -> list[str]:
    """The command line that runs `command` as the first process of a new house."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    namespaces = ["--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [find("unshare"), *user, *namespaces, "--", *command]


def available() -> bool:
    """True if this machine lets us build a house (root, or user namespaces that are allowed)."""
    if sys.platform != "linux" or shutil.which("unshare", path=_SEARCH) is None:
        return False
    return subprocess.run(unshare(["true"]), capture_output=True, check=False).returncode == 0


def furnish() -> None:
    """Called inside: an empty /srv, the shop's host name, its addresses, and a resolver that is nobody yet."""
    subprocess.run([find("mount"), "-t", "tmpfs", "-o", "size=512m,mode=755", "srv", str(SRV)], check=True)
    socket.sethostname(HOST)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS
        address = struct.pack("16sHH4s8x8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("10.20.0.1"))
        fcntl.ioctl(control, 0x8916, address)  # SIOCSIFADDR; the class A mask makes all of 10.0.0.0/8 local
    hosts = "".join(f"{address}\t{name}\n" for name, address in ADDRESS.items())
    _overlay("/etc/hosts", f"127.0.0.1\tlocalhost\n127.0.1.1\t{HOST}\n{hosts}")
    _overlay("/etc/resolv.conf", "nameserver 10.20.0.2\noptions timeout:1 attempts:1\n")


def _overlay(path: str, text: str) -> None:
    target = Path(path).resolve()
    if not target.exists():
        raise RecordError(f"{path} does not exist on this machine; create an empty one and record again.")
    source = SRV / f".{target.name}"
    source.write_text(text)
    source.chmod(0o644)
    subprocess.run([find("mount"), "--bind", str(source), str(target)], check=True)


def neutral_release() -> tuple[str, str]:
    """The kernel's release as it is, and the part of it that says nothing about who built it."""
    release = os.uname().release
    match = re.match(r"\d+(\.\d+)*", release)
    return release, match.group() if match else "linux"


def memory_cgroup() -> Path:
    """Where the memory-limited group of a recording lives (cgroup v1 or v2). Raises `RecordError` if there is none."""
    v1 = Path("/sys/fs/cgroup/memory")
    v2 = Path("/sys/fs/cgroup")
    if (v1 / "memory.limit_in_bytes").exists() or (v1 / "memory.usage_in_bytes").exists():
        return v1 / CGROUP
    subtree = v2 / "cgroup.subtree_control"
    if subtree.exists() and "memory" in subtree.read_text().split():
        return v2 / CGROUP
    raise RecordError("This machine offers no memory cgroup; mount the memory controller (v1 or v2) and record again.")


def remove_cgroup(*, timeout_s: float = 10.0) -> None:
    """Remove the group that a recording (this one or one that was killed) left behind, once its processes are gone."""
    deadline, pace = time.monotonic() + timeout_s, threading.Event()
    for base in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = base / CGROUP
        while group.is_dir():
            try:
                group.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise RecordError(
                        f"{group} cannot be removed ({error.strerror}); is another recording running?"
                    ) from None
                pace.wait(0.05)
