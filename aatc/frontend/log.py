"""``AATC_LOG=ir,passes,code,tune,recompiles``: what the compiler does, on standard error."""

from __future__ import annotations

import logging
import os

WORDS = {
    "ir": "the IR of every graph, as imported and after the last pass",
    "passes": "each pass: its time, rewrites and notes",
    "code": "the generated source",
    "tune": "schedules that were measured, and the one kept",
    "recompiles": "why a graph was compiled again",
}
_done: str | None = None


def configure() -> None:
    """Reads ``AATC_LOG`` and switches the loggers ``aatc.<word>`` on; does nothing if it has not changed."""
    global _done
    text = os.environ.get("AATC_LOG", "")
    if text == _done:
        return
    _done = text
    root = logging.getLogger("aatc")
    wanted = [w for w in (p.strip() for p in text.split(",")) if w]
    if wanted and not any(getattr(h, "from_aatc", False) for h in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
        handler.from_aatc = True  # type: ignore[attr-defined]
        root.addHandler(handler)
        root.propagate = False
    for word in WORDS:
        logging.getLogger(f"aatc.{word}").setLevel(logging.DEBUG if word in wanted else logging.NOTSET)
    for word in wanted:
        if word not in WORDS:
            root.warning("AATC_LOG: there is no %r; words: %s", word, ", ".join(WORDS))


def enabled(word: str) -> bool:
    return bool(_done) and logging.getLogger(f"aatc.{word}").isEnabledFor(logging.DEBUG)


def write(word: str, text: str, *args: object) -> None:
    """Logs ``text % args`` under ``word``."""
    if _done:
        logging.getLogger(f"aatc.{word}").debug(text, *args)
