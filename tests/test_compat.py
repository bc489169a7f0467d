"""Changing a library for a while leaves no trace, and a library that changed itself is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qcore.compat import Change, Wording, patching
from qcore.errors import LibraryChangedError


class _Base:
    def inherited(self) -> str:
        return "base"


class Library(_Base):
    @staticmethod
    def own() -> str:
        return "own"


def own() -> str:
    return "own"


@pytest.fixture(autouse=True)
def _no_declarations_are_kept() -> Iterator[None]:
    before = list(patching._REQUIREMENTS)
    yield
    patching._REQUIREMENTS[:] = before


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


def test_a_change_within_the_same_change_wraps_it() -> None:
    change = _change("own")
    with change.applied(lambda: "first"):
        (first,) = change.originals()
        with change.applied(lambda: f"second of {first()}"):
            assert Library.own() == "second of first"
        assert Library.own() == "first"
    assert Library.own() == "own"


def _elsewhere(look: Callable[[], Any]) -> Any:
    """Look from another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(look).result(timeout=10)


@pytest.mark.parametrize("owner", ["changed_library:Library", "changed_library"])
def test_another_thread_sees_what_the_library_has_and_does_not_wait(owner: str) -> None:
    change = _change("own", owner=owner)
    library = change.target()

    def change_too() -> str:
        with change.applied(lambda: "other"):
            return str(library.own())

    with change.applied(lambda: "first"):
        assert (library.own(), _elsewhere(lambda: library.own())) == ("first", "own")
        assert (_elsewhere(change_too), library.own()) == ("other", "first")


def test_another_thread_does_not_see_an_added_attribute() -> None:
    with _change("new", adds=True).applied(1):
        assert not _elsewhere(lambda: hasattr(Library, "new"))


def test_a_change_for_other_versions_changes_nothing() -> None:
    change = Change("here", "pytest", ">=1", "changed_library:Library", ["own"], why="", only="<1")
    with change.applied(lambda: "other"):
        assert Library.own() == "own"


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
    assert f"pytest {pytest.__version__} {said}, which here needs: it is slow." in str(
        refusal.value
    )
    assert "written for pytest>=1" in str(refusal.value)
    assert dict(vars(Library)) == before


def spelled(value: float) -> float:
    spelling = value
    return spelling


class Spelled:
    def __init__(self) -> None:
        self.field = {"key": 1}


@pytest.mark.parametrize(
    ("owner", "known"),
    [("spelled", "spelling"), ("Spelled", "field"), ("Spelled", "key"), ("Library.own", "own")],
)
def test_a_word_that_code_no_longer_uses_is_refused(owner: str, known: str) -> None:
    def requirement(name: str) -> Wording:
        return Wording("here", "pytest", ">=1", f"changed_library:{owner}", [name], why="Read.")

    requirement(known).checked()
    with pytest.raises(LibraryChangedError, match=f"uses no 'gone' in changed_library:{owner}"):
        requirement("gone").checked()


def test_what_a_version_does_not_need_may_be_missing() -> None:
    unneeded = Change("here", "pytest", ">=1", "no_such_library", ["gone"], why="", only="<1")
    assert unneeded.originals() == (None,)
