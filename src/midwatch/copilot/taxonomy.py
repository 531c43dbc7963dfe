# ruff: noqa: E501 - a step is one sentence on one line
"""What can be wrong? Twenty-four categories of cause, a sentence for each, and what to do next about it.

`unknown` is an answer too: it abstains. Two finer names of build troubles (`ci_quality_gate`, `ci_environment`) fold
into `ci_build_dependency`, so that there are exactly twenty-four categories beside `unknown`. Steps are written here,
by people; a model only chooses among them, and code fills `{entity}` with a name that was found in the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

from midwatch.copilot.model import Severity

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of cause. `cause` completes the sentence "The likely cause is ..."; `steps` may hold `{entity}`."""

    id: str
    cause: str
    severity: Severity
    steps: tuple[str, ...]


_ALL = (
    Category(
        "oom_memory",
        "memory ran out and a process was killed or refused memory",
        "critical",
        (
            "Confirm the kill: `journalctl -k | grep -i 'out of memory'` or `kubectl describe pod {entity}` (Last State: OOMKilled).",
            "Compare memory use with the limit over the last hours: a slope means a leak, a step means load or a change.",
            "Raise the memory limit of {entity} or lower its load to stop the bleeding; then restart it.",
            "Take a heap profile of {entity} before the next restart, if it is a leak.",
            "For a cache or Redis, check `maxmemory` and the eviction policy.",
        ),
    ),
    Category(
        "cpu_saturation",
        "the processor is saturated or throttled",
        "high",
        (
            "See who uses the processor: `top -H` on the host or `kubectl top pod --containers`.",
            "Check throttling: `container_cpu_cfs_throttled_periods_total`; raise or remove the CPU limit of {entity} if it is throttled.",
            "Add replicas of {entity} or shed load while you look for the cause.",
            "Take a profile (`py-spy`, `perf top`, `async-profiler`) and look for long garbage collections.",
        ),
    ),
    Category(
        "disk_storage_full",
        "a disk or a quota is full",
        "critical",
        (
            "Find the full file system: `df -h` and `df -i` on the host of {entity}.",
            "Find what grew: `du -xh --max-depth=2 / | sort -h | tail`; also `lsof +L1` for deleted files that are still open.",
            "Free space safely: rotate logs (`journalctl --vacuum-size=500M`), prune images, remove old dumps. Never delete WAL by hand.",
            "Grow the volume, then restart what stopped writing: {entity}.",
            "Alert at 80 % and on the growth rate, so that the next time is by day.",
        ),
    ),
    Category(
        "connection_exhaustion",
        "connections, file descriptors or ports are used up",
        "critical",
        (
            "Count who holds them: `SELECT usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2` or `ss -s`, `lsof -p PID | wc -l`.",
            "Close idle or leaked sessions, or restart the client that leaks them, to restore service of {entity}.",
            "Compare the sum of all pool sizes with the server's limit (`max_connections`, `ulimit -n`).",
            "Put a pooler in front (PgBouncer) or lower the pool size; look for a connection that is not returned on an error path.",
        ),
    ),
    Category(
        "quota_rate_limit",
        "a quota or a rate limit was reached",
        "high",
        (
            "See which limit and whose: response headers (`Retry-After`, `X-RateLimit-*`) or `kubectl describe quota`.",
            "Slow the caller down: back off with jitter, honour `Retry-After`, cut concurrency of {entity}.",
            "Ask for a higher quota or move the job to a quiet hour.",
            "Look for a new loop or retry storm that multiplied the calls.",
        ),
    ),
    Category(
        "scheduling_capacity",
        "the scheduler finds no node for a pod",
        "high",
        (
            "Read the scheduler's reason: `kubectl describe pod {entity}` (Events).",
            "Compare requests with free capacity: `kubectl describe nodes | grep -A6 'Allocated resources'`.",
            "Fix the mismatch it names: taint and toleration, node selector, affinity, or a request that is too large.",
            "Add a node or check why the autoscaler does not: `kubectl -n kube-system logs deploy/cluster-autoscaler`.",
        ),
    ),
    Category(
        "image_pull_artifact",
        "an image or an artefact cannot be fetched",
        "high",
        (
            "Read the exact error: `kubectl describe pod {entity}`; then try it: `docker pull IMAGE`.",
            "Check that the tag exists in the registry and was pushed for this architecture.",
            "Check the pull secret and the registry's availability and rate limit.",
            "Roll back to the last image that pulled while the tag is mended: `kubectl rollout undo deployment/NAME`.",
        ),
    ),
    Category(
        "config_env_error",
        "a setting or an environment variable is missing or wrong",
        "high",
        (
            "Name the setting in the cited line and compare it with the last working version: `git log -p -- config/`.",
            "Look at what the process really has: `kubectl exec {entity} -- env | sort` or `systemctl show {entity} -p Environment`.",
            "Restore the missing ConfigMap, Secret or value, then restart {entity}.",
            "Validate settings at start and in CI, so that a bad one cannot be rolled out.",
        ),
    ),
    Category(
        "deploy_regression",
        "a rollout, upgrade or migration broke it",
        "critical",
        (
            "Compare the time of the rollout with the first error: `kubectl rollout history deployment/{entity}`.",
            "Roll back now if users suffer: `kubectl rollout undo deployment/{entity}` or `helm rollback RELEASE`.",
            "For a migration, find who holds the lock: `SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock'`.",
            "Stop the blocking session or the migration, and run it again with `lock_timeout` in a quiet hour.",
            "Diff the two versions before it is rolled out again.",
        ),
    ),
    Category(
        "code_defect_crash",
        "the program crashed on a defect in its own code",
        "critical",
        (
            "Start at the innermost frame in the cited lines and the change that last touched it: `git log -p FILE`.",
            "Check whether it came with the last release; if so, roll back {entity}.",
            "Reproduce it with the input in the log, and write the failing test first.",
            "For a segmentation fault, get the core: `coredumpctl gdb {entity}`.",
        ),
    ),
    Category(
        "health_probe",
        "a health probe fails although the process runs",
        "medium",
        (
            "Call the probe yourself: `kubectl exec {entity} -- curl -sv localhost:PORT/PATH`; check port, path and scheme.",
            "Compare start-up time with `initialDelaySeconds` and `timeoutSeconds`; use a startupProbe for slow starts.",
            "Look at what the process did when the probe failed: load, garbage collection, a dependency in the handler.",
        ),
    ),
    Category(
        "dns_resolution",
        "a name does not resolve",
        "critical",
        (
            "Ask for the name from the same place: `dig {entity}` or `kubectl exec POD -- nslookup {entity}`.",
            "Check the spelling and the namespace of the name in the settings; a typo looks just like an outage.",
            "Check the resolver: `cat /etc/resolv.conf`, `kubectl -n kube-system logs -l k8s-app=kube-dns`.",
            "Look for a recent change of the zone, the record or the network policy for port 53.",
        ),
    ),
    Category(
        "network_connectivity",
        "the network path to a peer is broken or nobody listens there",
        "critical",
        (
            "Try the path from the same host: `nc -vz HOST PORT` for {entity}. Refused means nobody listens; a timeout means that packets are dropped.",
            "Check that the peer runs and listens on that address: `ss -ltnp` there.",
            "Look for a recent change of firewall, security group, NetworkPolicy or route.",
            "Check for loss on the way: `mtr -rw HOST`.",
        ),
    ),
    Category(
        "service_routing",
        "a gateway has no healthy backend to send requests to",
        "critical",
        (
            "See whether the service has endpoints: `kubectl get endpointslices -l kubernetes.io/service-name={entity}`.",
            "Check that the backend runs and listens on the port that the gateway uses: `curl -v BACKEND:PORT`.",
            "Compare selector, port and ingress class with the last version that worked.",
            "Restart or scale the backend of {entity}; the gateway's own log shows when it comes back.",
        ),
    ),
    Category(
        "tls_cert_expiry",
        "a certificate has expired or is not trusted",
        "critical",
        (
            "Read the dates: `openssl s_client -connect HOST:443 -servername HOST </dev/null | openssl x509 -noout -dates -issuer -subject`.",
            "Renew it: `certbot renew` or `kubectl describe certificate {entity}` and see why cert-manager did not.",
            "Reload what serves it (`nginx -s reload`) and check that the new chain is sent.",
            "Check the clock of both ends and the CA bundle of the client: `timedatectl`.",
            "Alert 21 days before expiry.",
        ),
    ),
    Category(
        "authn_authz",
        "credentials or permissions are refused",
        "high",
        (
            "Name who was refused and what for in the cited line; check whether the password, key or token was rotated.",
            "Test the credential by hand with the same user: {entity}.",
            "Check the grant or the role: `kubectl auth can-i VERB RESOURCE --as SUBJECT`, `\\du` in psql, or the IAM policy.",
            "If it is many users from few addresses, treat it as an attack: block them and tell security.",
        ),
    ),
    Category(
        "dependency_failure",
        "another service that it calls is failing",
        "high",
        (
            "Look at the health of the service it names: {entity}, and its provider's status page.",
            "Tell its owner with the cited lines and the time of the first one.",
            "Limit the harm: open the breaker, serve stale data or turn the feature off.",
            "Check that timeouts and retries do not multiply the load on it.",
        ),
    ),
    Category(
        "database_slow_or_locked",
        "the database is locked, slow or read-only",
        "critical",
        (
            "Find the blocker: `SELECT pid, pg_blocking_pids(pid), state, query FROM pg_stat_activity WHERE wait_event_type = 'Lock'` or `SHOW ENGINE INNODB STATUS`.",
            "End the blocking session if it is safe: `SELECT pg_terminate_backend(PID)`.",
            "Look at the slowest statements and their plans: `EXPLAIN (ANALYZE, BUFFERS)`.",
            "Check replica lag, and whether {entity} is a replica or was failed over to read-only.",
            "Take locks in one order everywhere, and keep transactions short.",
        ),
    ),
    Category(
        "queue_backlog",
        "messages come in faster than they are consumed",
        "high",
        (
            "Measure it: `kafka-consumer-groups --describe --group GROUP` or `rabbitmqctl list_queues name messages consumers`.",
            "Check whether consumers of {entity} run, rebalance or fail on one message; look into the dead-letter queue.",
            "Add consumers (at most one per partition) or pause producers.",
            "Look for what made consuming slow: a dependency, a larger message, a lock.",
        ),
    ),
    Category(
        "storage_volume_mount",
        "a volume cannot be provisioned or mounted",
        "high",
        (
            "Read the events: `kubectl describe pod {entity}` and `kubectl describe pvc`.",
            "Check that the storage class exists and that the access mode fits: `kubectl get storageclass,pv,pvc`.",
            "Look for a volume that is still attached to a dead node: `kubectl get volumeattachments`.",
            "For NFS, test the export by hand: `showmount -e SERVER` and `mount -v`.",
        ),
    ),
    Category(
        "node_control_plane",
        "a node, the container runtime or the control plane is unhealthy",
        "critical",
        (
            "See which nodes and why: `kubectl get nodes` and `kubectl describe node {entity}` (Conditions).",
            "On the node: `systemctl status kubelet containerd`, `journalctl -u kubelet --since -30min`, `dmesg -T | tail -50`.",
            "Move work away: `kubectl cordon {entity}` and `kubectl drain {entity} --ignore-daemonsets --delete-emptydir-data`.",
            "For hardware errors, replace the node; for etcd, check quorum and disk latency.",
        ),
    ),
    Category(
        "ci_test_failure",
        "a test fails",
        "medium",
        (
            "Run the failing test alone on the same commit: {entity}.",
            "Compare expected with actual in the cited lines, and with the change under test.",
            "Run it twenty times; if it passes sometimes it is flaky: mend or quarantine it.",
            "Check whether it also fails on the main branch.",
        ),
    ),
    Category(
        "ci_build_dependency",
        "the build, a dependency or a quality gate fails",
        "medium",
        (
            "Fix the first error in the cited lines; later ones often follow from it.",
            "Run the same step locally with the versions of the lock file.",
            "Check whether a dependency, a tool or the runner's image changed since the last green run.",
            "For a lint, format or audit gate, run the tool's fix command and commit the result.",
            "Rerun once if a download or the runner failed.",
        ),
    ),
    Category(
        "benign_false_alarm",
        "nothing is wrong now: it was planned, a test, or has already passed",
        "info",
        (
            "Confirm that it has passed: look at the metric since the last cited line.",
            "Acknowledge the alert, and tell whoever was woken.",
            "Give the alert a longer `for:` or a silence during planned work, so that it does not wake anyone again.",
        ),
    ),
)

CATEGORIES: dict[str, Category] = {category.id: category for category in _ALL}
"""Every category by id, in the order of the taxonomy."""

IDS: tuple[str, ...] = (*CATEGORIES, UNKNOWN)
"""The ids that an answer may name: the twenty-four and `unknown`."""

ALIASES: dict[str, str] = {"ci_quality_gate": "ci_build_dependency", "ci_environment": "ci_build_dependency"}
"""Finer names that other sources use, and the category that they fold into."""

UNKNOWN_STEPS: tuple[str, ...] = (
    "Read the cited lines and the minutes before the first of them; the log alone does not name the cause.",
    "Look at what changed in the last hour: deploys, settings, traffic, certificates, nodes.",
    "Widen the log: the services that this one calls, and the host's own log (`journalctl -p warning --since -1h`).",
)

assert len(CATEGORIES) == 24, "the taxonomy has twenty-four categories"


def canonical(name: str) -> str:
    """The id of a name, with finer names folded; `unknown` for a name outside the taxonomy."""
    name = ALIASES.get(name, name)
    return name if name in CATEGORIES else UNKNOWN


def steps_of(category: str) -> tuple[str, ...]:
    """The next steps for a category or `unknown`, with `{entity}` not yet filled."""
    return CATEGORIES[category].steps if category in CATEGORIES else UNKNOWN_STEPS


def cause_of(category: str) -> str:
    """What the category says, to complete a sentence."""
    return CATEGORIES[category].cause if category in CATEGORIES else "not clear from this log"


def severity_of(category: str) -> Severity:
    """How bad the category usually is, before the alert is asked."""
    return CATEGORIES[category].severity if category in CATEGORIES else "medium"
