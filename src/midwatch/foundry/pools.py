"""Words that names are made of: what teams call their services, hosts, databases, queues, domains and files."""

from __future__ import annotations

import random
from collections.abc import Callable


def listed(words: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(words.split())


_WORDS = listed("""
    checkout payments orders cart inventory shipping pricing search recommendations catalog billing invoice ledger
    notifications mailer sms identity sessions users profile accounts storefront admin backoffice reports
    analytics ingest etl media thumbnails transcoder uploads downloads chat presence feed timeline geo maps
    dispatch fleet telemetry audit consent fraud risk kyc loyalty coupons promo reviews ratings support tickets
    booking calendar availability rates tax currency quotes orderbook settlement clearing warehouse picking
    returns labels tracking webhooks integrations partner crawler indexer inference embeddings flags experiments
    cms docs forms survey grades enrolment claims policies patients appointments imaging meters tariffs outage
    subscriptions entitlements renewals playback playlists lyrics matchmaking leaderboard telephony voicemail
    leads campaigns attribution assets wiki snapshots archive translations signup onboarding permissions receipts
    refunds wallet cards transfers payouts statements disputes merchants vendors procurement timesheets payroll
    recruiting weather sensors firmware devices routes stations parcels lockers menus recipes kitchen couriers
    parking tolls passes events seats venues
""")
_ROLES = ("", "", "-api", "-api", "-service", "-service", "-svc", "-worker", "-server", "-backend", "-gateway")
_MORE_ROLES = ("-consumer", "-processor", "-frontend", "-web", "-manager", "-sync", "-proxy", "-core", "-v2", "-job")
_TEAMS = ("acme", "core", "prod", "platform", "growth", "eu", "shared", "retail", "internal", "data")
_PLACES = ("fra1", "ams3", "lon2", "nyc1", "sfo2", "sgp1", "dc1", "dc2", "iad", "cdg", "hel1", "syd1")
_KINDS = ("web", "app", "db", "node", "worker", "cache", "srv", "vm", "proxy", "mq", "build", "batch", "edge", "k8s")
_STARS = listed("""
    atlas vega orion lyra mira rigel titan hydra argus castor pollux nova draco phoenix cygnus juno
""")
_ORGS = listed("""
    acme globex initech umbra northwind contoso fabrikam tailspin hooli lumon vandelay wayfare brightloop kestrel
    oakline bluefin quarry pinecrest harborlight meridian redshift5 stonebridge
""")
_TLDS = ("com", "io", "net", "org", "dev", "cloud", "co", "de", "eu", "app")
_INNER = ("internal", "svc.cluster.local", "corp", "lan", "local", "int", "prod.internal", "service.consul")
_PEOPLE = listed("""
    alice bob carol dmitri elena farid grace hana ivan jonas kim lena miguel nadia olga priya tom yusuf
""")
_TABLES = listed("""
    orders users sessions events payments invoices items products customers audit_log messages jobs accounts
    addresses subscriptions line_items shipments stock inventory ledger_entries notifications tokens devices
    documents
""")
_VERBS = listed("""
    process handle load fetch create update validate render parse apply resolve sync build publish reserve
""")
_BRANCHES = ("main", "master", "develop", "release/{n}.{m}", "feature/{w}", "fix/{w}-timeout", "dependabot/npm/{w}-{n}")
_PACKAGES = listed("""
    requests urllib3 lodash axios express react numpy pandas boto3 sqlalchemy jackson-databind guava log4j-core
    serde tokio grpc protobuf pydantic webpack eslint typescript spring-core netty-handler openssl zlib rails
    nokogiri
""")
_ENVIRONMENT = listed("""
    DATABASE_URL REDIS_URL API_KEY JWT_SECRET STRIPE_SECRET_KEY AWS_REGION S3_BUCKET KAFKA_BROKERS SMTP_HOST
    SENTRY_DSN SESSION_SECRET QUEUE_URL LOG_LEVEL FEATURE_FLAGS_URL OAUTH_CLIENT_ID SIGNING_KEY TENANT_ID
""")
_JOBS = ("backup", "import", "cleanup", "sync", "report", "migrate")
_STORES = ("prod", "assets", "backups", "raw")
_REGIONS = listed("""
    us-east-1 us-west-2 eu-west-1 eu-central-1 ap-southeast-1 europe-west4 us-central1 westeurope
""")


def _hex(source: random.Random, length: int) -> str:
    return f"{source.getrandbits(length * 4):0{length}x}"


def _word(source: random.Random) -> str:
    return source.choice(_WORDS)


def _service(source: random.Random) -> str:
    role = source.choice(_MORE_ROLES if source.random() < 0.25 else _ROLES)
    team = source.choice(_TEAMS) + "-" if source.random() < 0.08 else ""
    return f"{team}{_word(source)}{role}"


def _host(source: random.Random) -> str:
    style = source.randrange(8)
    number = source.randint(1, 48)
    if style == 0:
        return f"ip-10-{source.randrange(256)}-{source.randrange(256)}-{source.randrange(2, 255)}"
    if style == 1:
        return f"{source.choice(_STARS)}{number if source.random() < 0.3 else ''}"
    if style == 2:
        return f"{source.choice(_PLACES)}-{source.choice(_KINDS)}-{number:02d}"
    if style == 3:
        return f"gke-{source.choice(_TEAMS)}-pool-{source.randint(1, 4)}-{_hex(source, 8)}-{_hex(source, 4)}"
    if style == 4:
        return f"{source.choice(_KINDS)}{number:02d}.{source.choice(_ORGS)}.{source.choice(_INNER[2:6])}"
    if style == 5:
        return f"{_word(source)}-{source.choice(_KINDS)}-{number}"
    return f"{source.choice(_KINDS)}-{source.choice(('prod', 'stg', 'eu', 'us', 'a', 'b'))}-{number:02d}"


def _domain(source: random.Random) -> str:
    style = source.randrange(6)
    if style == 0:
        return (
            f"{source.choice(('api', 'auth', 'www', 'cdn', 'pay', 'id'))}.{source.choice(_ORGS)}.{source.choice(_TLDS)}"
        )
    if style == 1:
        return f"{_word(source)}.{source.choice(_TEAMS)}.{source.choice(_INNER)}"
    if style == 2:
        return f"{_word(source)}-{source.choice(('db', 'api', 'cache', 'mq'))}.{source.choice(_INNER)}"
    if style == 3:
        return f"{_word(source)}.{source.choice(_ORGS)}.{source.choice(_TLDS)}"
    if style == 4:
        return f"{_word(source)}.{source.choice(_TEAMS)}.svc.cluster.local"
    return f"{_word(source)}.{source.choice(_PLACES)}.{source.choice(_ORGS)}.{source.choice(_TLDS)}"


def _user(source: random.Random) -> str:
    style = source.randrange(4)
    if style == 0:
        return source.choice(_PEOPLE)
    return (f"{_word(source)}_rw", f"svc_{_word(source)}", f"{_word(source)}_app")[style - 1]


def _database(source: random.Random) -> str:
    return _word(source) + source.choice(("", "", "_prod", "_db", "_production", "db", "_main", "_eu"))


def _file(source: random.Random) -> str:
    """A file's name without its ending."""
    folder = f"{_word(source)}/" if source.random() < 0.5 else ""
    return f"{folder}{source.choice(_VERBS)}_{_word(source)}"


def _path(source: random.Random) -> str:
    root = source.choice(("/var/lib", "/data", "/srv", "/mnt", "/opt", "/var/log", "/home/app", "/app"))
    return f"{root}/{_word(source)}/{source.choice(('data', 'cache', 'spool', 'tmp', 'current', 'wal', 'uploads'))}"


def _test(source: random.Random) -> str:
    verb, word = source.choice(_VERBS), _word(source)
    return f"test_{verb}_{word}" if source.random() < 0.7 else f"Test{verb.title()}{word.title()}"


def _class(source: random.Random) -> str:
    ending = source.choice(("Service", "Controller", "Repository", "Handler", "Client", "Manager", "Worker"))
    return _word(source).title() + ending


def _method(source: random.Random) -> str:
    return source.choice(_VERBS) + _word(source).title()


def _image(source: random.Random) -> str:
    org = source.choice(_ORGS)
    registry = source.choice(
        (f"registry.{org}.{source.choice(_TLDS)}", f"ghcr.io/{org}", f"docker.io/{org}", f"quay.io/{org}")
    )
    tag = source.choice((_hex(source, 7), f"v{source.randint(0, 9)}.{source.randint(0, 30)}.{source.randint(0, 9)}"))
    return f"{registry}/{_service(source)}:{tag}"


def _branch(source: random.Random) -> str:
    text = source.choice(_BRANCHES)
    return text.format(n=source.randint(1, 9), m=source.randint(0, 20), w=_word(source))


def _queue(source: random.Random) -> str:
    return _word(source) + source.choice((".created", "-events", "_queue", ".updates", "-jobs", ".dlq", "-outbox"))


def _volume(source: random.Random) -> str:
    return source.choice(
        (f"pvc-{_hex(source, 8)}", f"data-{_word(source)}-{source.randrange(4)}", f"{_word(source)}-data")
    )


def _key(source: random.Random) -> str:
    return f"{_word(source)}.{source.choice(('timeout', 'url', 'enabled', 'pool.size', 'retries', 'region', 'token'))}"


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "service": _service,
    "host": _host,
    "node": _host,
    "ns": lambda source: source.choice((_word(source), "default", "production", f"{source.choice(_TEAMS)}-apps")),
    "db": _database,
    "user": _user,
    "domain": _domain,
    "image": _image,
    "volume": _volume,
    "queue": _queue,
    "topic": _queue,
    "table": lambda source: source.choice(_TABLES),
    "job": lambda source: (
        f"{_word(source)}-{source.choice(('backup', 'import', 'cleanup', 'sync', 'report', 'migrate'))}"
    ),
    "test": _test,
    "file": _file,
    "func": lambda source: f"{source.choice(_VERBS)}_{_word(source)}",
    "class": _class,
    "branch": _branch,
    "key": _key,
    "method": _method,
    "path": _path,
    "bucket": lambda source: (
        f"{source.choice(_ORGS)}-{_word(source)}-{source.choice(('prod', 'assets', 'backups', 'raw'))}"
    ),
    "group": lambda source: f"{_word(source)}-{source.choice(('consumers', 'workers', 'group', 'indexer'))}",
    "env": lambda source: source.choice(_ENVIRONMENT),
    "secret": lambda source: f"{_word(source)}-{source.choice(('credentials', 'tls', 'secrets', 'token', 'db-auth'))}",
    "configmap": lambda source: f"{_word(source)}-{source.choice(('config', 'settings', 'env', 'rules'))}",
    "pvc": lambda source: f"data-{_word(source)}-{source.randrange(4)}",
    "cluster": lambda source: f"{source.choice(_TEAMS)}-{source.choice(_PLACES)}",
    "region": lambda source: source.choice(_REGIONS),
    "repo": lambda source: f"{source.choice(_ORGS)}/{_service(source)}",
    "pkg": lambda source: source.choice(_PACKAGES),
    "route": lambda source: f"{source.choice(('/api/v1', '/api', '/v2', ''))}/{source.choice(_TABLES)}",
    "device": lambda source: source.choice(("sda", "sdb", "sdc", "nvme0n1", "nvme1n1", "dm-0", "vda", "xvdf", "md0")),
    "unit": lambda source: f"{_service(source)}.service",
    "process": lambda source: f"{_word(source)}-{source.choice(('worker', 'gen', 'daemon', 'runner', 'sync'))}",
}
"""How a name of each kind is made. `pod`, `container`, `url` and `email` are made of other names, by `names.Cast`."""
