"""What is changed of ExecuTorch while a model is lowered: how much its loggers say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["at_level"]


@contextmanager
def at_level(logger: logging.Logger, level: int) -> Iterator[None]:
    """Set the level of one of ExecuTorch's loggers while the context lasts.

    One thread lowers at a time, so none puts back what another has set.

    Args:
        logger: The logger.
        level: From which level on it speaks.

    Yields:
        Nothing.
    """
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
