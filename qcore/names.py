"""Names and types of modules in rules: globs, base classes, words for a rule without match."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from qcore.errors import QcoreError, near_misses

__all__ = [
    "ModuleRules",
    "compile_glob",
    "look_up",
    "nothing_selected",
    "type_name",
    "type_names",
]

Rule = TypeVar("Rule")
Known = TypeVar("Known")

_GLOB: Final = re.compile(r"[*?\[]")


class ModuleRules(Generic[Rule]):
    """Rules by the names and types of modules; the most specific one wins.

    A name wins over a type, the deepest name and the innermost type over others. An exact name wins
    over every glob that matches the same path; of two globs the one with more literal text is the
    more specific. A type selects its subclasses. The order of the rules never matters.
    """

    def __init__(self, names: Mapping[str, Rule], types: Mapping[str, Rule]) -> None:
        self._names, self._types = dict(names), dict(types)
        globs = [key for key in names if _GLOB.search(key)]
        globs.sort(key=lambda key: (-len(_GLOB.sub("", key)), key))
        self._globs = [(compile_glob(key), names[key]) for key in globs]
        self._by_path = functools.cache(self._named)

    def _named(self, path: str) -> Rule | None:
        if path in self._names:
            return self._names[path]
        return next((rule for glob, rule in self._globs if glob.fullmatch(path)), None)

    def _typed(self, name: str) -> Rule | None:
        if not self._types:
            return None
        return next((self._types[t] for t in type_names(name) if t in self._types), None)

    def choose(self, *chains: Sequence[tuple[str, str]]) -> tuple[Rule, int] | None:
        """Return the rule that decides about a module, and how far around it what it selects is.

        A chain has name and type of the module and of those around it, the innermost first; there
        is one for each name that the module has.
        """
        finders: tuple[Callable[[str], Rule | None], ...] = (self._by_path, self._typed)
        for part, find in enumerate(finders):
            for depth in range(max(map(len, chains), default=0)):
                for chain in chains:
                    rule = find(chain[depth][part]) if depth < len(chain) else None
                    if rule is not None:
                        return rule, depth
        return None

    def unmatched(
        self, paths: Collection[str], types: Collection[str], where: str
    ) -> Iterator[tuple[str, str]]:
        """Yield name or type, and message, of every rule that selects none of these modules."""
        for key, rule in self._names.items():
            if not any(map(compile_glob(key).fullmatch, paths)):
                yield key, nothing_selected(rule, key, paths, "module", where)
        for key, rule in self._types.items():
            if not any(key in type_names(name) for name in types):
                yield key, nothing_selected(rule, key, types, "module type", where)


def compile_glob(glob: str) -> re.Pattern[str]:
    """Compile a glob over dotted names: ``*`` stays within one component, ``**`` crosses them."""
    out: list[str] = []
    position = 0
    while position < len(glob):
        if glob.startswith("**", position):
            out.append(".*")
            position += 2
            continue
        char = glob[position]
        if char == "[" and (end := glob.find("]", position + 2)) > 0:
            body = glob[position + 1 : end].replace("\\", r"\\")
            out.append(f"[{'^' + body[1:] if body.startswith('!') else body}]")
            position = end + 1
            continue
        out.append({"*": r"[^.]*", "?": r"[^.]"}.get(char) or re.escape(char))
        position += 1
    return re.compile("".join(out))


def type_name(cls: type) -> str:
    """Return the qualified name of a class, as in ``torch.nn.modules.linear.Linear``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def type_names(name: str) -> tuple[str, ...]:
    """Return the qualified names of a class and of its bases, most derived first.

    Those of ``object`` and ``torch.nn.Module`` are left out. A class that is not loaded has one
    name.
    """
    import torch

    module, _, qualname = name.rpartition(".")
    cls = getattr(sys.modules.get(module), qualname, None)
    if not inspect.isclass(cls):
        return (name,)
    bases = (base for base in cls.__mro__ if base not in (object, torch.nn.Module))
    return tuple(map(type_name, bases))


def nothing_selected(
    rule: object, key: str, known: Iterable[str], what: str, where: str = "captured graph"
) -> str:
    """Say that a rule matches nothing, with the names that are close, or those that there are."""
    names = sorted(filter(None, known))
    close = near_misses(key, names)
    if close:
        hint = f"Did you mean {' or '.join(map(repr, close))}?"
    elif names:
        hint = f"There are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
    else:
        hint = f"The {where} names no {what}."
    return f"{rule} selects nothing: the model has no {what} {key!r}. {hint}"


def look_up(wanted: object, known: Mapping[str, Known], kind: Any, what: str, own: str) -> Known:
    """Return what a name stands for; an object of the user's own, of ``kind``, stands for itself.

    Messages call such objects ``what``, and say in ``own`` how to pass one of one's own.
    """
    if isinstance(wanted, str) and wanted in known:
        return known[wanted]
    if isinstance(wanted, kind) and not isinstance(wanted, type):
        return wanted  # type: ignore[no-any-return]
    close = near_misses(wanted, known) if isinstance(wanted, str) else ()
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise QcoreError(f"{wanted!r} is no {what}.{hint} There are: {', '.join(known)}. {own}")
