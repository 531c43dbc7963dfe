# ruff: noqa: E501 - a pattern is easier to read on one line
"""The signature rules: what a line must say for a category to be named, and how much that weighs.

A rule is (category, weight, literals, pattern). Lines are matched in lower case. At least one literal must occur before
the pattern is tried, which makes hundreds of rules cheap. Weights: 9 names the cause beyond doubt, 6 to 8 is a plain
statement of it, 3 to 5 a symptom that other causes have too, 1 to 2 a hint.

The rules themselves are the rows of `rules_table.py`. They come from the error texts of the programs themselves (kernels,
container runtimes, Kubernetes, databases, brokers, proxies, clouds, language runtimes, build tools). They were widened
while looking at public failure logs and at what the foundry makes of the programs in its parts `train` and `calibrate`,
so what they reach on those says that nothing is broken, not what to expect elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midwatch.copilot.rules_table import TABLE


@dataclass(frozen=True, slots=True)
class Rule:
    """One signature. `literals` are lower-case strings of which one must occur before `pattern` is tried."""

    category: str
    weight: float
    literals: tuple[str, ...]
    pattern: re.Pattern[str]


RULES: tuple[Rule, ...] = tuple(
    Rule(category, weight, tuple(literals.split("~")), re.compile(pattern))
    for category, weight, literals, pattern in TABLE
)

NEGATED = re.compile(
    r"\b(?:no|0|zero|without|never|not|any|free of)\s(?:\w+\s){0,2}(?:errors?|failures?|failed|timeouts?|timed out|restarts?|oom\w*|deadlocks?|"
    r"crash\w*|panics?|leaks?|exceptions?|vulnerabilit\w+|packet loss|problems?|issues?|violations?|throttl\w+|expired|unreachable|dropped|denied)\b(?! to| in)"
    r"|\b(?:errors?|failures?|failed|timeouts?|oom_?kills?|dropped|restarts?|throttled|rejected|vulnerabilities|deadlocks|lag|429|5xx|4xx|panics|full|unreachable|denied|lost|evicted|killed|expired|aborted)"
    r"(?:\"|')?\s*[=:]\s*(?:\"|')?0(?![.\d])"
    r"|\b(?:if|when|unless|should|would|in case of?|on|handle[sd]?|handling|simulat\w+|test(?:ing)?)\s(?:an?\s|the\s)?(?:\w+\s){0,2}"
    r"(?:rate limit\w*|429|connection (?:is )?refused|timed? ?outs?|oom|out of memory|deadlocks?|failover)\b",
)
"""What takes a match back: "0 errors", "no failures", "retry when rate limited". Only a match that overlaps counts as taken back."""

PASSED = re.compile(
    r"(?:\bpassed\b|\bpass:|^\s*(?:--- )?pass\b|^\s*[✓√✔]|^\s*ok\s|\.\.\. ok\s*$|\[\s+ok\s+\])(?!.*\bfail(?:ed|ures?)\b)"
)
"""A test that passed says nothing, whatever its name."""

TAKEN_BACK = re.compile(
    r"\bsucceeded (?:on|after)\b|\b(?:retry|attempt)(?: \d+)? succeeded|\b(?:is|are) (?:expected|normal|harmless)\b(?!.{0,8} to)"
    r"|can (?:safely )?be (?:safely )?ignored|ip address '[^']{1,45}' could not be resolved"
)
"""A line that itself says that nothing came of it."""

AT_THE_DOOR = re.compile(
    r"tls handshake error from|ssl handshake fail\w*\b(?!.{0,120}upstream)|ssl handshaking, client|sasl login authentication|relay access denied"
    r"|invalid user|failed password for|failed to log on|\blogin_error|refresh_token_error|user 'root'@|no route matches|<badreq>|\[preauth\]|/wp-(?:login|admin)"
)
"""What strangers who knock are told: servers say it all day, so it is a hint and no plain statement."""

SOURCE_CODE = re.compile(
    r"^\s*(?:if \[|if \(|elif |echo |printf |raise \w|throw new |return [\w(\"'f]+\(|await \w|const |let \w+ =|var \w+ =|def \w+\(|function \w|export [a-z_]+=|fail \")|"
    r";\s*then\b|\$\{\{|^\s*\|?\s*\d+ \| |^\s*>\s*\d+ \| ",
)
"""A line of a program or a script that is printed, not what it did."""

CI_MARKS: tuple[str, ...] = (
    "##[group]",
    "##[error]",
    "##[endgroup]",
    "github_workspace",
    "github actions",
    "/home/runner/",
    "actions/checkout",
    "gitlab-runner",
    "[pipeline]",
    "travis_",
    "mozharness",
    "[taskcluster",
    "gitlab ci",
    "teamcity",
    "npm err!",
    "build failure",
    "build failed",
    "test session starts",
    "=== run ",
    "> task :",
    "[info] build",
    "taskcluster",
    "test suites:",
    "running tests",
    "collected ",
    "maven-surefire",
    "ninja: build stopped",
    "buildkite",
    "circleci",
    "jenkins",
    "test-unexpected-fail",
    "[error] failed to execute goal",
    "--- fail:",
    "=== failures ===",
    "compilation failure",
)
"""Words of a build server or a test runner; two different ones make a log a CI log."""

ROLLOUT = re.compile(
    r"\b(?:rolling (?:out|update)|rollout (?:started|begin|of|to|in progress)|deploy(?:ed|ing|ment) (?:\S+ ){0,4}(?:version|started|v?\d+\.\d+|revision|release|to prod)|"
    r"(?:upgraded|upgrading|updated|bumped|released) (?:\S+ ){0,4}(?:to|from) (?:version )?v?\d+\.\d+|release \S+ (?:has been )?(?:upgraded|deployed)|"
    r"scaled up replica set|new (?:version|release|revision|image) (?:\S+ )?(?:deployed|rolled|live|active)|image (?:changed|updated)|helm upgrade|"
    r"starting (?:deploy|rollout|release)|switched traffic to)"
)
"""A new version went out. Errors that begin only after such a line speak for `deploy_regression`."""
ROLLOUT_LITERALS: tuple[str, ...] = (
    "roll",
    "deploy",
    "upgrad",
    "updated",
    "bumped",
    "release",
    "scaled up replica set",
    "new version",
    "image ",
    "switched traffic",
)
