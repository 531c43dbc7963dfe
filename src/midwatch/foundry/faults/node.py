"""Node.js services. The family is held out of training, so its trades and its wording are its own."""

# ruff: noqa: E501 - one row of a table is one line
from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from midwatch.foundry.place import Place
from midwatch.foundry.services.calm import CALM
from midwatch.foundry.services.defects import IN_CODE
from midwatch.foundry.services.kit import Defect, Kit, Release, faults_of
from midwatch.foundry.services.limits import LIMITS
from midwatch.foundry.services.outside import OUTSIDE
from midwatch.foundry.services.service import Runtime, Service

TRADES = (
    ("storefront", "basket", "wallet"),
    ("feed", "post", "ranking"),
    ("canteen", "menu", "recipes"),
    ("garage", "car", "telematics"),
    ("concerts", "seat", "boxoffice"),
    ("warehouse", "pallet", "robots"),
    ("surveys", "answer", "analytics"),
)


def _command(place: Place, rng: random.Random) -> list[str]:
    return ["node", *rng.choice(((), ("--no-deprecation",), ("--enable-source-maps",))), "main.js"]


RUNTIME = Runtime(
    family="node",
    formats=("plain", "winston", "brackets", "nest", "pino", "json", "logfmt"),
    command=_command,
    phrases="node",
    trades=TRADES,
)
DEFECTS = (
    Defect(fields={"coupon": "STAFF"}, error=r"TypeError: Cannot read properties of undefined \(reading 'percent'\)"),
    Defect(fields={"coupon": "BLACKWEEK"}, error=r"TypeError: Cannot read properties of undefined \(reading 'terms'\)"),
    Defect(fields={"customer": None}, error=r"TypeError: Cannot read properties of null \(reading 'address'\)"),
    Defect(fields={"customer": {"address": {}}}, error=r"TypeError: Cannot read properties of undefined \(reading 'toLowerCase'\)"),
    Defect(fields={"customer": {"address": {"country": 49}}}, error=r"TypeError: .*toLowerCase is not a function"),
    Defect(fields={"lines": []}, error=r"TypeError: Reduce of empty array with no initial value"),
    Defect(fields={"lines": [{"price": "12,50"}]}, error=r"SyntaxError: Cannot convert 12,50 to a BigInt"),
    Defect(fields={"due": "31/12/2026"}, error=r"RangeError: Invalid time value"),
    Defect(fields={"extra": "{'gift': 1}"}, error=r"SyntaxError: Expected property name or '}' in JSON"),
    Defect(fields={"extra": ""}, error=r"SyntaxError: Unexpected end of JSON input"),
    Defect(fields={"region": 3}, error=r"TypeError: Cannot read properties of undefined \(reading 'code'\)"),
    Defect(fields={"note": "%E0%A4"}, error=r"URIError: URI malformed"),
    Defect(fields={"points": 5}, error=r"TypeError: .*filter is not a function"),
    Defect(fields={"number": "1234567890"}, error=r"RangeError: Invalid count value: -2"),
    Defect(fields={"lines": [{"price": "9.90", "category": "boots"}]}, error=r"RangeError: Maximum call stack size exceeded"),
    Defect(fields={"postal": {"customer": None}}, error=r"TypeError: Cannot read properties of null \(reading 'address'\)", job=True),
    Defect(fields={"postal": {"customer": {}}}, error=r"TypeError: Cannot read properties of undefined \(reading 'country'\)", job=True),
    Defect(fields={"postal": {"customer": {"address": {"country": 1}}}}, error=r"TypeError: .*toLowerCase is not a function", job=True),
)  # fmt: skip
RELEASES = (
    Release(file="orders.js", before="const percent = discountPercent(order);", after="const percent = order.pricing.percent;", error=r"TypeError: Cannot read properties of undefined \(reading 'percent'\)"),
    Release(file="orders.js", before="module.exports = { total,", after="module.exports = { totals: total,", error=r"TypeError: orders\.total is not a function"),
    Release(file="orders.js", before="return (sum * (100 - percent)", after="return (subtotal * (100 - percent)", error=r"ReferenceError: subtotal is not defined"),
    Release(file="main.js", before="const upstream = require('./upstream');", after="const upstream = require('./upstream');\nrequire('@opentelemetry/api');", error=r"Error: Cannot find module '@opentelemetry/api'", at_start=True),
    Release(file="main.js", before="this.saved.push({ id, amount });", after="this.store.push({ id, amount });", error=r"TypeError: Cannot read properties of undefined \(reading 'push'\)"),
    Release(file="upstream.js", before="JSON.stringify({ id: orderId, amount })", after="{ id: orderId, amount }", error=r"argument must be (of type string|one of type string)"),
    Release(file="log.js", before="const layouts = {", after="const layouts = {{", error=r"SyntaxError: Unexpected token '{'", at_start=True),
    Release(file="main.js", before="const settings = loadSettings();", after="const settings = await loadSettings();", error=r"SyntaxError: await is only valid in async functions", at_start=True),
)  # fmt: skip
SETTINGS = (
    ("PAYMENTS_TOKEN", None, r"Error: Missing required environment variable PAYMENTS_TOKEN"),
    ("PAYMENTS_URL", None, r"Error: Missing required environment variable PAYMENTS_URL"),
    ("POOL_SIZE", None, r"Error: Missing required environment variable POOL_SIZE"),
    ("DATA_DIR", None, r"Error: Missing required environment variable DATA_DIR"),
    ("POOL_SIZE", "ten", r"TypeError: POOL_SIZE must be an integer"),
    ("WORKERS", "two", r"TypeError: WORKERS must be an integer"),
    ("PAYMENTS_URL", "//8080", r"TypeError(\[ERR_INVALID_URL\])?: Invalid URL|input: '//8080'"),
    ("PORT", "eighty", r"RangeError \[ERR_SOCKET_BAD_PORT\]: options\.port should be"),
    ("PORT", "99999", r"RangeError \[ERR_SOCKET_BAD_PORT\]: options\.port should be"),
    ("LOG_LEVEL", "verbose", r"RangeError: unknown level"),
    ("LIMITS_FILE", "FILE", r"SyntaxError: (Expected double-quoted property name|Unexpected token) .*in JSON|SyntaxError: Expected double-quoted"),
    ("LIMITS_FILE", "/etc/limits/missing.json", r"Error: ENOENT: no such file or directory, open '/etc/limits/missing\.json'"),
)  # fmt: skip


def _tight_memory(service: Service) -> tuple[Callable[[Sequence[str]], list[str]], dict[str, str]]:
    mib = service.rng.choice((24, 32, 48))
    return lambda command: [command[0], f"--max-old-space-size={mib}", *command[1:]], {}


KIT = Kit(
    runtime=RUNTIME,
    patterns={
        "oom": r"JavaScript heap out of memory|Reached heap limit|Ineffective mark-compacts",
        "thread": r"triggerUncaughtException",
        "flag": r"TypeError: Cannot read properties of undefined \(reading 'terms'\)",
        "dns": r"getaddrinfo (ENOTFOUND|EAI_AGAIN)",
        "refused": r"ECONNREFUSED",
        "reset": r"ECONNRESET|socket hang up",
        "close": r"socket hang up",
        "deaf": r"timeout of \d+ms exceeded",
        "silent": r"timeout of \d+ms exceeded",
        "files": r"EMFILE",
        "tls_expired": r"certificate has expired",
        "tls_untrusted": r"self[- ]signed certificate|unable to verify the first certificate|unable to get local issuer",
        "tls_other": r"does not match certificate's altnames",
        "tls_alert": r"(?i)alert certificate expired",
        "full": r"ENOSPC",
        "volume_missing": r"ENOENT",
        "volume_readonly": r"EROFS",
        "volume_denied": r"EACCES",
    },
    defects=DEFECTS,
    releases=RELEASES,
    settings=SETTINGS,
    tight_memory=_tight_memory,
    heavy=lambda rng: f"/report?months={rng.choice((900, 1200, 2000))}",
    slow_search=lambda rng: f"/search?q={'a' * rng.randrange(25, 28)}!",
    open_files=42,
    group_mb=110,
    styles=("pm2", "pm2", "kubelet"),
)
FAULTS = tuple(faults_of(KIT, {**IN_CODE, **LIMITS, **OUTSIDE, **CALM}, ("node",)))
