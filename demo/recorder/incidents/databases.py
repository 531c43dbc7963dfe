"""PostgreSQL out of connections, behind a lock, and with a password that is no longer true."""

from __future__ import annotations

import random

from recorder.incident import Alert, Incident
from recorder.servers import call, postgres, psql
from recorder.stage import Stage

_WWW = "10.20.0.20"


def _connections(stage: Stage) -> None:
    logs = "log_connections = on\nlog_disconnections = on\nlog_checkpoints = on\n"
    postgres(stage, f"max_connections = 24\nsuperuser_reserved_connections = 0\n{logs}")
    psql(stage, "CREATE ROLE checkout LOGIN; CREATE ROLE reporting LOGIN")
    psql(stage, "CREATE TABLE payments (order_id int, cents int); GRANT ALL ON payments TO checkout, reporting")
    stage.begin()
    stage.python("checkout_api")
    stage.wait_port(_WWW, 8080)

    def pay(rng: random.Random) -> None:
        call(_WWW, 8080, "POST", f"/orders/{rng.randrange(40000, 60000)}/pay", body=b"x" * rng.randrange(5, 90))

    with stage.traffic(pay, seed=1, rate_per_s=8, clients=2):
        stage.wait_for("checkout-api", r" 200 ", count=60)
        stage.python("report_export")
        stage.wait_for("report-export", "no session", count=2)
        with stage.traffic(pay, seed=2, rate_per_s=10, clients=8):
            stage.wait_for("checkout-api", r"payment of order \d+ not taken", count=5)
            stage.fire()
            stage.wait_for("checkout-api", r"payment of order \d+ not taken", count=20)


CONNECTIONS = Incident(
    name="postgres-connections",
    service="checkout-api",
    delivery="loki+alertmanager",
    category="connection_exhaustion",
    severity="critical",
    entity="postgres",
    title="checkout-api answers 5xx",
    broken="PostgreSQL with max_connections = 24; a monthly report opens a session per warehouse and keeps them "
    "all, so the checkout gets none when more customers come.",
    reasoning="Every slot is taken and new sessions are refused: the taxonomy's `too many connections`.",
    shows=(r"sorry, too many clients already",),
    needs=("postgres", "psql", "libpq.so.5"),
    root=True,
    run=_connections,
    alert=Alert(
        name="HighErrorRate",
        severity="critical",
        summary="checkout-api answers 5xx",
        description="More than 5% of the requests to checkout-api have failed for the last minute.",
        expr='sum(rate(http_requests_total{service="checkout-api",code=~"5.."}[1m])) / '
        'sum(rate(http_requests_total{service="checkout-api"}[1m])) > 0.05',
    ),
)


def _migration(stage: Stage) -> None:
    postgres(stage, "max_connections = 60\nlog_lock_waits = on\ndeadlock_timeout = 1s\nlog_checkpoints = on\n")
    psql(stage, "CREATE ROLE orders LOGIN; CREATE ROLE reporting LOGIN; CREATE ROLE orders_owner LOGIN")
    psql(stage, "CREATE TABLE orders (id int PRIMARY KEY, state text)")
    psql(stage, "INSERT INTO orders SELECT g, 'open' FROM generate_series(1, 20000) g; CHECKPOINT")
    psql(stage, "ALTER TABLE orders OWNER TO orders_owner; GRANT ALL ON orders TO orders, reporting")
    stage.begin()
    stage.python("orders_api")
    stage.wait_port(_WWW, 8080)

    def order(rng: random.Random) -> None:
        call(_WWW, 8080, "POST" if rng.random() < 0.3 else "GET", f"/orders/{rng.randrange(1, 20000)}")

    with stage.traffic(order, seed=7, rate_per_s=5, clients=6):
        stage.wait_for("orders-api", r" 200 ", count=50)
        stage.python("nightly_export")
        stage.wait_for("nightly-export", "1000 orders sent")
        stage.python("migrate", name="rollout")
        stage.wait_for("orders-api", "canceling statement", count=8)
        stage.fire()
        stage.wait_for("rollout", "attempt 2 of 2")
        stage.wait_for("rollout", "aborted")


MIGRATION_LOCK = Incident(
    name="migration-lock",
    service="orders-api",
    delivery="loki+alertmanager",
    category="deploy_regression",
    alternatives=("database_slow_or_locked",),
    severity="critical",
    entity="orders",
    title="orders-api is slow and fails",
    broken="A rollout's ALTER TABLE waits for its exclusive lock behind the nightly export, which reads the "
    "table in one long transaction; every request to the table queues behind the ALTER and meets its "
    "statement timeout.",
    reasoning="The taxonomy puts a migration lock at a rollout under deploy_regression: what to do is to stop the "
    "rollout. database_slow_or_locked names the same lock from the database's side and is accepted.",
    shows=(
        r"deploying orders-api 2\.14\.0",
        r"applying 0042_add_gift_note",
        r"0042_add_gift_note failed",
        r"still waiting for AccessExclusiveLock",
        r"canceling statement due to lock timeout",
        r"deploy .* aborted",
    ),
    needs=("postgres", "psql", "libpq.so.5"),
    root=True,
    run=_migration,
    alert=Alert(
        name="RequestLatencyHigh",
        severity="critical",
        summary="orders-api is slow and fails",
        description="The 95th percentile of orders-api has been above 1.5 s for a minute, and requests fail.",
        expr='histogram_quantile(0.95, rate(http_request_duration_seconds_bucket{service="orders-api"}[1m])) > 1.5',
    ),
)


def _password(stage: Stage) -> None:
    postgres(stage, "max_connections = 40\nlog_connections = on\n", auth="scram-sha-256")
    psql(stage, "CREATE ROLE inventory LOGIN PASSWORD 'first'; CREATE TABLE stock (sku int PRIMARY KEY, count int)")
    psql(stage, "INSERT INTO stock SELECT g, 100 FROM generate_series(1, 500) g; GRANT ALL ON stock TO inventory")
    (stage.folder("secrets") / "inventory-db").write_text("first\n")
    stage.begin()
    stage.python("inventory_api")
    stage.wait_port(_WWW, 8080)

    def stock(rng: random.Random) -> None:
        call(_WWW, 8080, "POST" if rng.random() < 0.2 else "GET", f"/stock/{rng.randrange(1, 500)}")

    with stage.traffic(stock, seed=8, rate_per_s=9, clients=3):
        stage.wait_for("inventory-api", r" 200 ", count=90)
        stage.python("rotate_secret", name="secret-rotation")
        stage.wait_for("inventory-api", r"stock of \d+ not read", count=10)
        stage.fire()
        stage.wait_for("inventory-api", r"stock of \d+ not read", count=35)


WRONG_PASSWORD = Incident(
    name="wrong-password",
    service="inventory-api",
    delivery="loki+alertmanager",
    category="authn_authz",
    severity="critical",
    entity="inventory",
    title="inventory-api answers 5xx",
    broken="The database password of role inventory was rotated; the service read the old one at its start and "
    "keeps using it.",
    reasoning="The server says that the password is wrong: authn_authz.",
    shows=(r"password authentication failed for user", r"rotated the database credential"),
    needs=("postgres", "psql", "libpq.so.5"),
    root=True,
    run=_password,
    alert=Alert(
        name="HighErrorRate",
        severity="critical",
        summary="inventory-api answers 5xx",
        description="More than 5% of the requests to inventory-api have failed for the last minute.",
        expr='sum(rate(http_requests_total{service="inventory-api",code=~"5.."}[1m])) / '
        'sum(rate(http_requests_total{service="inventory-api"}[1m])) > 0.05',
    ),
)
