"""What a label set says: which service it is about, how severe it is, and the fingerprint that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from midwatch.copilot.intake.source import NAME_CHARS, one_line
from midwatch.copilot.model import Severity

UNKNOWN_SERVICE = "unknown"
"""The service of an event that names none. Nothing is grouped by it."""

SERVICE_LABELS = (
    "service",
    "service_name",
    "app",
    "app_kubernetes_io_name",
    "app.kubernetes.io/name",
    "application",
    "k8s_app",
    "deployment",
    "statefulset",
    "daemonset",
    "job_name",
    "cronjob",
    "container",
    "container_name",
    "kubernetes_container_name",
    "unit",
    "systemd_unit",
    "pod",
    "kubernetes_pod_name",
    "component",
    "job",
    "host",
    "hostname",
    "node",
    "nodename",
    "instance",
)
"""Labels that name what is broken, the most telling first."""

_EXPORTER = re.compile(
    r"(?:^|[-_/])(?:node|node-?exporter|kube-state-metrics|cadvisor|kubelet|blackbox(?:-exporter)?|pushgateway"
    r"|kubernetes-(?:pods|nodes|services|service-endpoints|cadvisor|apiservers))$"
)
_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"  # the letters of a pod's suffix: k8s.io/apimachinery, `rand.SafeEncodeString`
_POD_SUFFIX = re.compile(rf"-(?:{_SAFE}{{6,10}}-)?{_SAFE}{{5}}$|-\d+$")
_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[^:]+):\d+$")
_SEVERITIES: dict[str, Severity] = {
    **dict.fromkeys(("critical", "crit", "page", "emergency", "emerg", "fatal", "disaster", "p1", "sev1"), "critical"),
    **dict.fromkeys(("high", "error", "err", "major", "alert", "p2", "sev2"), "high"),
    **dict.fromkeys(("medium", "warning", "warn", "average", "p3", "sev3"), "medium"),
    **dict.fromkeys(("low", "minor", "p4", "sev4"), "low"),
    **dict.fromkeys(("info", "information", "informational", "none", "notice", "debug", "p5", "sev5"), "info"),
}
_FNV_OFFSET, _FNV_PRIME, _MASK = 14695981039346656037, 1099511628211, (1 << 64) - 1


def service_of(labels: Mapping[str, str]) -> str:
    """The service that a label set is about, or `unknown`.

    The job of an exporter (node-exporter, kube-state-metrics) says who measured, not what is broken: it is passed over.
    """
    for name in SERVICE_LABELS:
        value = one_line(labels.get(name, ""), NAME_CHARS)
        if not value or _EXPORTER.search(value.lower()):
            continue
        if name in {"pod", "kubernetes_pod_name"}:
            value = _POD_SUFFIX.sub("", value) or value
        elif name in {"unit", "systemd_unit"}:
            value = value.removesuffix(".service")
        elif name == "instance":
            found = _PORT.match(value)
            value = found.group(1) if found else value
        return value
    return UNKNOWN_SERVICE


def severity_of(word: str, default: Severity = "medium") -> Severity:
    """The severity that a sender's word means; the default for a word that we do not know."""
    return _SEVERITIES.get(word.strip().lower(), default)


def fingerprint_of(labels: Mapping[str, str]) -> str:
    """64-bit FNV-1a over the sorted labels, as Alertmanager computes it (prometheus/common, `LabelSet.Fingerprint`).

    Computed alike, so that a delivery with and one without the field are the same alert.
    """
    value = _FNV_OFFSET
    for name in sorted(labels):
        for byte in b"%b\xff%b\xff" % (name.encode(), labels[name].encode()):
            value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return f"{value:016x}"
