"""Keeps import-time noise of the stack away from users."""

from __future__ import annotations

import logging
from typing import Final

# Logger -> beginnings of messages that say nothing a user of qcore can act on.
_NOISE: Final = {
    "torchao": ("Failed to load", "Skipping import of cpp extensions"),
    "torch.utils._pytree": ("%s is an Enum subclass", "<enum "),
}


def _is_signal(record: logging.LogRecord) -> bool:
    beginnings = _NOISE.get(record.name, ())
    return not record.getMessage().startswith(beginnings) if beginnings else True


def hush() -> None:
    """Drop the known import-time messages of torchao and torch; imports neither."""
    for name in _NOISE:
        logging.getLogger(name).addFilter(_is_signal)
