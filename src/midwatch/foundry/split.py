"""Which programs may a model learn from? Whole families are kept apart, so that a number says what a stranger gets.

A model learns from `train`, its confidence is fitted on `calibrate`, and numbers are reported on `test`. A family that
is named nowhere here is for training.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from midwatch.errors import FoundryError

Part = Literal["train", "calibrate", "test"]

CALIBRATE = frozenset(
    (
        "memcached",
        "mariadb",
        "mosquitto",
        "haproxy",
        "php",
        "ruby",
        "azure",
        "gitlab-ci",
        "elasticsearch",
        "docker",
        "cassandra",
        "npm",
        "consul",
        "vault",
        "windows",
        "jenkins",
        "argo",
    )
)
"""Families that confidence is fitted on."""
TEST = frozenset(
    (
        "redis",
        "node",
        "nats",
        "envoy",
        "dotnet",
        "mongodb",
        "gcp",
        "circleci",
        "systemd",
        "cargo",
        "etcd",
        "kafka",
        "traefik",
        "istio",
        "flux",
        "airflow",
        "celery",
        "gradle",
        "go-test",
    )
)
"""Families that nothing is fitted on: what is reported for programs never seen."""


def part_named(name: str) -> Part | None:
    """The part of a name; None for an empty one (all programs). Raises `FoundryError` for another name."""
    if not name:
        return None
    if name not in get_args(Part):
        raise FoundryError(f"{name} is no part.", "Parts are train, calibrate and test; leave it out for all programs.")
    return cast(Part, name)


_SAME = {
    "node-app": "node",
    "rails-api": "ruby",
    "haproxy-ingress": "haproxy",
    "strimzi": "kafka",
    "docker-hub": "docker",
    "mqtt": "mosquitto",
}
"""Programs that speak as another family does."""


def part_of(program: str) -> Part:
    """The part that a family of programs belongs to."""
    program = _SAME.get(program, program)
    if program in CALIBRATE:
        return "calibrate"
    return "test" if program in TEST else "train"
