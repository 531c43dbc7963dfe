"""Nothing secret leaves: planted secrets are placeholders in what a host receives, and come back in the answer."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.redact import Redactor, redact_request, restore_value
from midwatch.gateway.wire import ChatRequest, Message

# Joined at run time, so that no scanner takes these inventions for leaked keys.
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
SLACK = "xoxb-" + "123456789012-abcdefGHIJKL"
OPENAI = "sk-" + "proj-abcdEFGH1234567890ijklMNOP"
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256"}', b'{"sub":"1234567"}', b"signature-bytes")
)
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx4\nAbCd12\n-----END RSA PRIVATE KEY-----"

PLANTED = [
    ("aws key id", f"using {AWS} for s3", AWS),
    ("aws secret", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    ("github token", f"remote: https://x:{GITHUB}@github.com/a/b", GITHUB),
    ("slack token", f"posting with {SLACK}", SLACK),
    ("openai key", f"Authorization: Bearer {OPENAI}", OPENAI),
    ("jwt", f"token={JWT}", JWT),
    ("bare jwt", f"got {JWT} from client", JWT),
    ("private key", KEY, "MIIEowIBAAKCAQEAx4"),
    ("url password", "postgres://app:hunter2@db:5432/shop", "hunter2"),
    ("password=", "password=hunter2 user=app", "hunter2"),
    ("json password", '{"db_password": "hunter2!", "user": "app"}', "hunter2!"),
    ("escaped json", '{"msg": "{\\"api_key\\": \\"s3cretvalue\\"}"}', "s3cretvalue"),
    ("yaml", "client_secret: 'topsecretvalue'", "topsecretvalue"),
    ("brackets", "password=ab[cd[ef", "cd[ef"),
    ("flag", "mysql -u root --password hunter2xyz", "hunter2xyz"),
    ("basic", "Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
    ("cookie", "Cookie: session=abcdef0123456789", "abcdef0123456789"),
    ("email", "mail to jane.doe+ops@example.co.uk bounced", "jane.doe"),
    ("ipv4", "connect to 10.1.2.3:5432 refused", "10.1.2.3"),
    ("ipv6", "connect to [2001:db8::8a2e:370:7334]:443", "2001:db8::8a2e:370:7334"),
    ("long blob", "key " + "aB3" * 20, "aB3aB3"),
]


@pytest.mark.parametrize(("name", "text", "secret"), PLANTED, ids=[name for name, _, _ in PLANTED])
def test_a_planted_secret_does_not_leave_and_comes_back(name: str, text: str, secret: str) -> None:
    redactor = Redactor()
    sent = redactor.redact(text)
    assert secret not in sent
    assert redactor.restore(sent) == text
    assert redactor.redact(sent) == sent


@pytest.mark.parametrize(
    "text",
    [
        "FATAL:  password authentication failed for user app",
        "2024-05-01 03:12:44 ERROR version 1.2.3 of api failed at 03:12:44",
        "dial tcp: lookup payments.internal: no such host",
        "commit 3f2a1b4c5d6e7f8091a2b3c4d5e6f708192a3b4c",
        "token expired",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert Redactor().redact(text) == text


def test_equal_values_share_a_placeholder_and_different_ones_do_not() -> None:
    redactor = Redactor()
    assert redactor.redact("10.0.0.1 to 10.0.0.2 to 10.0.0.1") == "[IP_1] to [IP_2] to [IP_1]"
    assert redactor.count == 2


def test_a_log_cannot_smuggle_a_placeholder_in() -> None:
    redactor = Redactor()
    sent = redactor.redact("attacker says [SECRET_1]; password=hunter2")
    assert redactor.restore(sent) == "attacker says [SECRET_1]; password=hunter2"
    assert redactor.restore("[SECRET_99]") == "[SECRET_99]"
    sent = redactor.redact("password=[SECRET_1]hunter3 token=[IP_1]")
    assert "hunter3" not in sent


@given(st.text(max_size=400))
def test_restoring_undoes_redacting_on_any_text(text: str) -> None:
    redactor = Redactor()
    assert redactor.restore(redactor.redact(text)) == text


def test_a_whole_request_is_redacted_schema_included() -> None:
    request = ChatRequest(
        messages=(Message(role="user", content="host 10.0.0.1 password=hunter2"),),
        json_schema={"properties": {"entity": {"enum": ["10.0.0.1", "db"]}}},
    )
    sent, redactor = redact_request(request)
    assert sent.messages[0].content == "host [IP_1] password=[SECRET_1]"
    assert sent.json_schema == {"properties": {"entity": {"enum": ["[IP_1]", "db"]}}}
    assert restore_value({"entity": "[IP_1]", "steps": ["see [IP_1]"], "n": 1}, redactor) == {
        "entity": "10.0.0.1",
        "steps": ["see 10.0.0.1"],
        "n": 1,
    }
