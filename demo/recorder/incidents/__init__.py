"""What is broken on purpose, and how: one value per incident, in the order in which the demo replays them."""

from __future__ import annotations

from recorder.incident import Incident
from recorder.incidents import application, databases, machine, network

INCIDENTS: dict[str, Incident] = {
    incident.name: incident
    for incident in (
        databases.CONNECTIONS,
        machine.DISK_FULL,
        network.CERTIFICATE,
        network.DEAD_UPSTREAM,
        network.DNS,
        machine.OOM_KILL,
        databases.MIGRATION_LOCK,
        databases.WRONG_PASSWORD,
        application.CRASH,
        machine.REDIS_FULL,
        network.RATE_LIMIT,
        application.FALSE_ALARM,
    )
}
