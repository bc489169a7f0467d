"""Changing a library for a while leaves no trace, whatever happens meanwhile."""

from __future__ import annotations

import threading

import pytest

from qcore.patching import patched
from qcore.quiet import quiet


class _Base:
    def inherited(self) -> str:
        return "base"


class _Library(_Base):
    @staticmethod
    def own() -> str:
        return "own"


def test_attributes_are_others_within_the_context_only() -> None:
    before = dict(vars(_Library))

    with patched(_Library, own=lambda: "other", inherited=lambda self: "other", new=1):
        assert (_Library.own(), _Library().inherited()) == ("other", "other")
        assert "new" in vars(_Library)

    assert dict(vars(_Library)) == before


def test_an_error_within_the_context_leaves_no_trace() -> None:
    before = dict(vars(_Library))

    with pytest.raises(ZeroDivisionError), patched(_Library, own=None):
        raise ZeroDivisionError

    assert dict(vars(_Library)) == before


def test_another_thread_waits_for_the_end_of_the_context() -> None:
    seen = []

    def patch() -> None:
        with quiet(), patched(_Library, own=lambda: "second"):
            seen.append(_Library.own())

    other = threading.Thread(target=patch)
    with patched(_Library, own=lambda: "first"), quiet():
        other.start()
        other.join(timeout=0.2)
        assert (seen, _Library.own()) == ([], "first")
    other.join()

    assert (seen, _Library.own()) == (["second"], "own")
