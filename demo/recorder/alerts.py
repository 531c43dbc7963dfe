"""The webhook body of an alert, from a real Alertmanager: we run one, tell it the alert, and keep what it posts."""

from __future__ import annotations

import json
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from recorder import house
from recorder.incident import Alert, Incident, RecordError
from recorder.stage import Stage

_CONFIG = """\
route:
  receiver: midwatch
  group_by: [alertname, service]
  group_wait: 100ms
  group_interval: 5m
  repeat_interval: 4h
receivers:
  - name: midwatch
    webhook_configs:
      - url: http://127.0.0.1:9099/hooks/alertmanager
        send_resolved: true
"""


def webhook_body(stage: Stage, incident: Incident, alert: Alert) -> dict[str, Any]:
    """Run Alertmanager in the house, fire `alert` through its API, and return the JSON it sends to a webhook."""
    assert stage.alert_at is not None, "an incident with an alert calls stage.fire()"
    received: list[bytes] = []
    arrived = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 9099), Hook)
    stage.on_exit(server.shutdown)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = stage.folder("alertmanager")
    (folder / "config.yml").write_text(_CONFIG)
    binary = house.find("prometheus-alertmanager")
    stage.versions["alertmanager"] = stage.output([binary, "--version"]).split("version ")[1].split(",")[0].split()[0]
    stage.start(
        "alertmanager",
        [
            binary,
            f"--config.file={folder / 'config.yml'}",
            f"--storage.path={folder / 'data'}",
            "--cluster.listen-address=",
            "--web.listen-address=10.20.0.90:9093",
            "--web.external-url=http://alerts.shop.internal:9093",
        ],
        collect=False,
    )
    stage.wait_port("10.20.0.90", 9093)
    fired = [
        {
            "labels": {
                "alertname": alert.name,
                "service": incident.service,
                "severity": alert.severity,
                "instance": house.HOST,
                "job": incident.service,
                **alert.labels,
            },
            "annotations": {"summary": alert.summary, "description": alert.description},
            "startsAt": stage.alert_at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "generatorURL": "http://prometheus.shop.internal:9090/graph?g0.expr=" + urllib.parse.quote(alert.expr),
        }
    ]
    request = urllib.request.Request(
        "http://10.20.0.90:9093/api/v2/alerts", json.dumps(fired).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=10).close()
    if not arrived.wait(30):
        raise RecordError("Alertmanager did not call the webhook in 30 s.")
    body: dict[str, Any] = json.loads(received[0])
    return body
