"""MariaDB broken in a dozen ways, and healthy."""

from __future__ import annotations

from midwatch.foundry.faults.mariadb import limits, others
from midwatch.foundry.faults.mariadb.server import NEEDS
from midwatch.foundry.stage import staged

FAMILY = "mariadb"
FAULTS = (
    staged(FAMILY, "connection_exhaustion", NEEDS, limits.too_many_connections),
    staged(FAMILY, "disk_storage_full", (*NEEDS, "mount"), limits.disk_full),
    staged(FAMILY, "database_slow_or_locked", NEEDS, limits.deadlock),
    staged(FAMILY, "database_slow_or_locked", NEEDS, limits.lock_wait),
    staged(FAMILY, "database_slow_or_locked", NEEDS, limits.slow_queries),
    staged(FAMILY, "authn_authz", NEEDS, others.access_denied),
    staged(FAMILY, "deploy_regression", NEEDS, others.unknown_column),
    staged(FAMILY, "database_slow_or_locked", NEEDS, others.crashed_table),
    staged(FAMILY, "oom_memory", (*NEEDS, "prlimit"), others.pool_too_large),
    staged(FAMILY, "config_env_error", NEEDS, others.bad_configuration),
    staged(FAMILY, "code_defect_crash", NEEDS, others.crash),
    staged(FAMILY, "tls_cert_expiry", (*NEEDS, "openssl"), others.expired_certificate),
    staged(FAMILY, "benign_false_alarm", NEEDS, others.planned_restart, kind="false_alarm"),
    staged(FAMILY, "benign_false_alarm", NEEDS, others.daily_load, kind="healthy"),
    staged(FAMILY, "benign_false_alarm", NEEDS, others.aborted_clients, kind="healthy"),
)
