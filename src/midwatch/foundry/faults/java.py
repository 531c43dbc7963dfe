"""Java services: a real JVM, its exceptions, its memory and its garbage collector."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from midwatch.foundry.place import Place
from midwatch.foundry.props import Certificate
from midwatch.foundry.services.calm import CALM
from midwatch.foundry.services.defects import IN_CODE
from midwatch.foundry.services.kit import Defect, Kit, Release, faults_of
from midwatch.foundry.services.limits import LIMITS
from midwatch.foundry.services.outside import OUTSIDE
from midwatch.foundry.services.service import Runtime, Service
from midwatch.foundry.stage import quietly

_LIGHT = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k", "-Dsun.net.http.retryPost=false")
"""A JVM that starts quickly beside others."""


def _command(place: Place, rng: random.Random) -> list[str]:
    """Compile the sources of the place; the program's package is what its sources say."""
    sources = sorted(str(path) for path in (place.folder / "app").glob("*.java"))
    first = (place.folder / "app" / "Main.java").read_text(encoding="utf-8").splitlines()[0]
    package = first.removeprefix("package ").rstrip(";")
    quietly(("javac", "-nowarn", "-d", str(place.folder / "app" / "classes"), *sources), what="javac")
    collector = rng.choice(((), (), ("-Xlog:gc",), ("-Xlog:gc*:stdout:time,level,tags",)))
    return ["java", *_LIGHT, *collector, "-Xmx64m", "-cp", "classes", f"{package}.Main"]


RUNTIME = Runtime(
    family="java",
    formats=("logback", "logback", "spring", "spring", "bracket", "jul", "json", "json-ecs"),
    command=_command,
)
DEFECTS = (
    Defect(fields={"coupon": "STAFF"}, error=r"NullPointerException: Cannot invoke .*intValue"),
    Defect(fields={"coupon": "BLACKWEEK"}, error=r"NullPointerException: Cannot invoke .*Map\.get"),
    Defect(fields={"customer": None}, error=r"NullPointerException: Cannot invoke .*Map\.get"),
    Defect(fields={"customer": {"address": {"country": 49}}}, error=r"ClassCastException: class java\.lang\.Long cannot be cast"),
    Defect(fields={"customer": {"address": {}}}, error=r"NullPointerException: Cannot invoke .*String\.toLowerCase"),
    Defect(fields={"lines": []}, error=r"ArithmeticException: "),
    Defect(fields={"lines": [{"price": "12,50"}]}, error=r"NumberFormatException: "),
    Defect(fields={"due": "31/12/2026"}, error=r"DateTimeParseException: Text '31/12/2026' could not be parsed"),
    Defect(fields={"note": "ab*d"}, error=r"IllegalArgumentException: Illegal base64 character"),
    Defect(fields={"extra": "{'gift': 1}"}, error=r"SyntaxException: Unexpected character"),
    Defect(fields={"region": 3}, error=r"ArrayIndexOutOfBoundsException: Index 3 out of bounds for length 3"),
    Defect(fields={"currency": "CHF"}, error=r"IllegalArgumentException: No enum constant .*CHF"),
    Defect(fields={"points": -5}, error=r"IllegalStateException: .* cannot be negative: -5"),
    Defect(fields={"tags": "fragile"}, error=r"java\.lang\.UnsupportedOperationException"),
    Defect(fields={"parts": []}, error=r"java\.util\.NoSuchElementException|ArrayIndexOutOfBoundsException: Index 0 out of bounds"),
    Defect(fields={"number": "123"}, error=r"StringIndexOutOfBoundsException: begin 0, end 8, length 3"),
    Defect(fields={"lines": [{"price": "9.90", "category": "boots"}]}, error=r"java\.lang\.StackOverflowError"),
    Defect(fields={"postal": {"customer": None}}, error=r"NullPointerException: Cannot invoke .*Map\.get", job=True),
    Defect(fields={"postal": {"customer": "none"}}, error=r"ClassCastException: class java\.lang\.String cannot be cast", job=True),
    Defect(fields={"postal": {"customer": {"address": {}}}}, error=r"NullPointerException: Cannot invoke .*String\.toLowerCase", job=True),
)  # fmt: skip
RELEASES = (
    Release(file="OrderCalculator.java", before='order.get("lines");', after='order.get("positions");', error=r"NullPointerException: Cannot invoke .*java\.util\.List\."),
    Release(file="OrderCalculator.java", before='(String) line.get("price")', after='(String) line.get("quantity")', error=r"ClassCastException: class java\.lang\.Long cannot be cast to class java\.lang\.String"),
    Release(file="OrderCalculator.java", before="BigDecimal.valueOf(100), 2, RoundingMode.HALF_UP)", after="BigDecimal.valueOf(97), 2, RoundingMode.UNNECESSARY)", error=r"ArithmeticException: Rounding necessary"),
    Release(file="Main.java", before="Main service = new Main(settings);", after='Class.forName("io.opentelemetry.api.OpenTelemetry");\n        Main service = new Main(settings);', error=r"ClassNotFoundException: io\.opentelemetry\.api\.OpenTelemetry", at_start=True),
    Release(file="Main.java", before='LOG.say(Log.Level.INFO, "created", null,', after='LOG.say(Log.Level.INFO, "creation", null,', error=r"NullPointerException: Cannot invoke .*String\.replace"),
    Release(file="Main.java", before='new LinkedBlockingDeque<>();', after='new LinkedBlockingDeque<>(2 - Integer.parseInt("2"));', error=r"java\.lang\.IllegalArgumentException", at_start=True),
    Release(file="Settings.java", before='required(env, "DATA_DIR")', after='required(env, "DATA_VOLUME")', error=r"IllegalStateException: Could not resolve placeholder 'DATA_VOLUME'", at_start=True),
)  # fmt: skip
SETTINGS = (
    ("PAYMENTS_TOKEN", None, r"IllegalStateException: Could not resolve placeholder 'PAYMENTS_TOKEN'"),
    ("PAYMENTS_URL", None, r"IllegalStateException: Could not resolve placeholder 'PAYMENTS_URL'"),
    ("DATA_DIR", None, r"IllegalStateException: Could not resolve placeholder 'DATA_DIR'"),
    ("POOL_SIZE", "ten", r'NumberFormatException: For input string: "ten"'),
    ("WORKERS", "", r'NumberFormatException: For input string: ""'),
    ("PAYMENTS_TIMEOUT", "2s", r'NumberFormatException: For input string: "2s"'),
    ("PAYMENTS_URL", "payments:8080", r"IllegalArgumentException: PAYMENTS_URL has no host"),
    ("PAYMENTS_URL", "http://pay ments/", r"Illegal character in authority"),
    ("PORT", "99999", r"IllegalArgumentException: port out of range:99999"),
    ("LOG_LEVEL", "VERBOSE", r"IllegalArgumentException: No enum constant .*VERBOSE"),
    ("LIMITS_FILE", "FILE", r"SyntaxException: Unexpected character"),
    ("LIMITS_FILE", "/etc/limits/missing.json", r"NoSuchFileException: /etc/limits/missing\.json"),
    ("JDK_JAVA_OPTIONS", "-Xmx2gb", r"Invalid maximum heap size|Could not create the Java Virtual Machine"),
    ("JDK_JAVA_OPTIONS", "-XX:+UseFastGC", r"Unrecognized VM option|Could not create the Java Virtual Machine"),
)  # fmt: skip


def _tight_memory(service: Service) -> tuple[Callable[[Sequence[str]], list[str]], dict[str, str]]:
    size = service.rng.choice(("-Xmx14m", "-Xmx18m", "-Xmx24m"))
    ends = service.rng.choice(((), (), ("-XX:+ExitOnOutOfMemoryError",)))
    return lambda command: [
        *(size if part.startswith("-Xmx") else part for part in command[:-3]),
        *ends,
        *command[-3:],
    ], {}


def _key_store(made: Certificate) -> dict[str, str]:
    store = made.cert.with_suffix(".p12")
    files = ("-in", str(made.cert), "-inkey", str(made.key), "-out", str(store))
    quietly(("openssl", "pkcs12", "-export", *files, "-passout", "pass:changeit"), what="openssl")
    return {"TLS_STORE": str(store)}


KIT = Kit(
    runtime=RUNTIME,
    patterns={
        "oom": r"java\.lang\.OutOfMemoryError",
        "thread": r'Exception in thread "worker-\d+"',
        "flag": r"NullPointerException: Cannot invoke .*Map\.get",
        "dns": r"java\.net\.UnknownHostException",
        "refused": r"ConnectException: Connection refused",
        "reset": r"SocketException: Connection reset",
        "close": r"Unexpected end of file from server",
        "deaf": r"SocketTimeoutException: [Cc]onnect timed out",
        "silent": r"SocketTimeoutException: Read timed out",
        "files": r"Too many open files",
        "tls_expired": r"validity check failed|CertificateExpiredException|NotAfter: ",
        "tls_untrusted": r"unable to find valid certification path|PKIX path building failed",
        "tls_other": r"No subject alternative (DNS )?name",
        "tls_alert": r"Received fatal alert: certificate_expired",
        "full": r"No space left on device",
        "volume_missing": r"NoSuchFileException",
        "volume_readonly": r"Read-only file system",
        "volume_denied": r"AccessDeniedException",
    },
    defects=DEFECTS,
    releases=RELEASES,
    settings=SETTINGS,
    tight_memory=_tight_memory,
    heavy=lambda rng: f"/report?months={rng.choice((300, 500, 800))}",
    slow_search=lambda rng: f"/search?q={'a' * rng.randrange(24, 27)}!",
    open_files=72,
    group_mb=130,
    tls_settings=_key_store,
    roomy=lambda command: ["-Xmx2g" if part.startswith("-Xmx") else part for part in command],
)
_SCENES = {**IN_CODE, **LIMITS, **OUTSIDE, **CALM}
_SCENES.pop("own-certificate")  # a JVM ends such connections without reading why
FAULTS = tuple(faults_of(KIT, _SCENES, ("java", "javac")))
