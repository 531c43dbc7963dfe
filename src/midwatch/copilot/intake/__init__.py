"""How does a signal get in? One file per source: it says where it listens and turns a body into events.

`source.py` the protocol and the table of sources → `auth.py` who may post → `body.py` the raw bytes, bounded →
`alertmanager.py`, `loki.py`, `text.py` the three shapes → `labels.py` what a label set says about service and severity.
"""

from __future__ import annotations

from midwatch.copilot.intake.alertmanager import Alertmanager
from midwatch.copilot.intake.loki import Loki
from midwatch.copilot.intake.source import Source
from midwatch.copilot.intake.text import Text

__all__ = ["SOURCES", "Source"]

SOURCES: tuple[Source, ...] = (Alertmanager(), Loki(), Text())
"""Every hook there is; a new source is a file here and a place in this row."""
