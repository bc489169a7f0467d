"""Changing a library for a while leaves no trace, and a library that changed itself is refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from qcore.compat import Change, patching
from qcore.errors import LibraryChangedError
from qcore.quiet import quiet


class _Base:
    def inherited(self) -> str:
        return "base"


class Library(_Base):
    @staticmethod
    def own() -> str:
        return "own"


@pytest.fixture(autouse=True)
def _no_declarations_are_kept() -> Iterator[None]:
    before = list(patching._CHANGES)
    yield
    patching._CHANGES[:] = before


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "changed_library", sys.modules[__name__])


def _change(*names: str, adds: bool = False, owner: str = "changed_library:Library") -> Change:
    return Change("here", "pytest", ">=1", owner, names, why="it is slow.", adds=adds)


def test_attributes_are_others_within_the_context_only() -> None:
    before = dict(vars(Library))

    with _change("own", "inherited").applied(lambda: "other", lambda self: "other"):
        assert (Library.own(), Library().inherited()) == ("other", "other")

    assert dict(vars(Library)) == before


def test_an_added_attribute_is_gone_afterwards() -> None:
    with _change("new", adds=True).applied(1):
        assert Library.new == 1  # type: ignore[attr-defined]
    assert not hasattr(Library, "new")


def test_an_error_within_the_context_leaves_no_trace() -> None:
    before = dict(vars(Library))

    with pytest.raises(ZeroDivisionError), _change("own").applied(None):
        raise ZeroDivisionError

    assert dict(vars(Library)) == before


def test_another_thread_waits_for_the_end_of_the_context() -> None:
    seen = []
    change = _change("own")

    def patch() -> None:
        with quiet(), change.applied(lambda: "second"):
            seen.append(Library.own())

    other = threading.Thread(target=patch)
    with change.applied(lambda: "first"), quiet():
        other.start()
        other.join(timeout=0.2)
        assert (seen, Library.own()) == ([], "first")
    other.join()

    assert (seen, Library.own()) == (["second"], "own")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change("gone"), "has no 'gone' in changed_library:Library"),
        (_change("own", owner="changed_library:Gone"), "has no changed_library:Gone"),
        (_change("own", owner="no_such_library"), "has no no_such_library"),
        (_change("own", adds=True), "already has 'own' in changed_library:Library"),
    ],
)
def test_a_name_that_the_library_no_longer_has_is_refused(change: Change, said: str) -> None:
    before = dict(vars(Library))
    with pytest.raises(LibraryChangedError) as refusal, change.applied(None):
        pass
    assert f"pytest {pytest.__version__} {said}, which here changes: it is slow." in str(
        refusal.value
    )
    assert "written for pytest>=1" in str(refusal.value)
    assert dict(vars(Library)) == before
