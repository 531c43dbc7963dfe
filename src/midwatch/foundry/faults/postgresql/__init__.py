"""PostgreSQL broken in twenty ways, and healthy."""

from __future__ import annotations

from midwatch.foundry.faults.postgresql import access, changes, crashes, healthy, limits, locks, replica
from midwatch.foundry.faults.postgresql.server import NEEDS
from midwatch.foundry.stage import staged

FAMILY = "postgresql"
FAULTS = (
    staged(FAMILY, "connection_exhaustion", NEEDS, limits.connection_slots),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), limits.disk_full),
    staged(FAMILY, "oom_memory", (*NEEDS, "prlimit"), limits.memory_exhausted),
    staged(FAMILY, "oom_memory", NEEDS, limits.shared_memory),
    staged(FAMILY, "database_slow_or_locked", NEEDS, locks.deadlock),
    staged(FAMILY, "database_slow_or_locked", NEEDS, locks.lock_timeout),
    staged(FAMILY, "database_slow_or_locked", NEEDS, locks.statement_timeout),
    staged(FAMILY, "database_slow_or_locked", NEEDS, locks.slow_scans),
    staged(FAMILY, "authn_authz", NEEDS, access.wrong_password),
    staged(FAMILY, "authn_authz", NEEDS, access.no_hba_entry),
    staged(FAMILY, "authn_authz", NEEDS, access.missing_role),
    staged(FAMILY, "authn_authz", NEEDS, access.permission_denied),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), access.expired_certificate),
    staged(FAMILY, "deploy_regression", NEEDS, changes.missing_column),
    staged(FAMILY, "deploy_regression", NEEDS, changes.dropped_column),
    staged(FAMILY, "config_env_error", NEEDS, changes.bad_configuration),
    staged(FAMILY, "oom_memory", NEEDS, crashes.killed_for_memory),
    staged(FAMILY, "code_defect_crash", NEEDS, crashes.segfault),
    staged(FAMILY, "benign_false_alarm", NEEDS, crashes.planned_restart, kind="false_alarm"),
    staged(FAMILY, "network_connectivity", (*NEEDS, "pg_basebackup"), replica.lost_primary),
    staged(FAMILY, "database_slow_or_locked", (*NEEDS, "pg_basebackup"), replica.written_standby),
    staged(FAMILY, "dns_resolution", NEEDS, replica.unknown_host),
    staged(FAMILY, "benign_false_alarm", NEEDS, healthy.daily_load, kind="healthy"),
    staged(FAMILY, "benign_false_alarm", NEEDS, healthy.harmless_errors, kind="healthy"),
    staged(FAMILY, "benign_false_alarm", NEEDS, healthy.quiet_start, kind="healthy"),
)
