"""Names and types of modules in rules: globs, base classes, words for a rule without match."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

from qcore.errors import QcoreError, near_misses

__all__ = [
    "PathRules",
    "compile_glob",
    "look_up",
    "nothing_selected",
    "type_name",
    "type_names",
]

Rule = TypeVar("Rule")
Known = TypeVar("Known")

_GLOB: Final = re.compile(r"[*?\[]")


class PathRules(Generic[Rule]):
    """Rules by the name of a module; names may be globs.

    Args:
        rules: Rule by name. An exact name wins over every glob; of two globs that match one path,
            the one with more literal text is the more specific.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        globs = [(key, rule) for key, rule in rules.items() if _GLOB.search(key)]
        globs.sort(key=lambda item: (-len(_GLOB.sub("", item[0])), item[0]))
        self._exact = dict(rules)
        self._patterns = [(compile_glob(key), rule) for key, rule in globs]
        self._known: dict[str, Rule | None] = {}

    def get(self, path: str) -> Rule | None:
        """Return the rule for a path, or ``None`` where no name matches it."""
        if path not in self._known:
            rule = self._exact.get(path)
            if rule is None:
                rule = next((r for p, r in self._patterns if p.fullmatch(path)), None)
            self._known[path] = rule
        return self._known[path]


def compile_glob(glob: str) -> re.Pattern[str]:
    """Compile a glob over dotted names in which ``*`` stays within one component.

    Args:
        glob: The name; ``**`` stands for any number of components.

    Returns:
        A pattern to ``fullmatch`` paths with.
    """
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

    Args:
        name: The qualified name of a module class.

    Returns:
        The names, without those of ``object`` and ``torch.nn.Module``; the name alone where no
        class of that name is loaded.
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
    """Say that a rule matches nothing, with the names that are close.

    Args:
        rule: The rule, as the message shows it.
        key: The name that it asks for.
        known: The names that there are.
        what: The kind of name, such as ``module``.
        where: What has no such name at all, if there is none.

    Returns:
        The message.
    """
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
    """Return what a name stands for; an object of the user's own stands for itself.

    Args:
        wanted: The name or the object.
        known: What has a name.
        kind: The class or protocol of such objects.
        what: What they are called in the message.
        own: How to pass one of one's own, for the message.

    Returns:
        The object.

    Raises:
        QcoreError: There is none of that name, or it is no such object.
    """
    if isinstance(wanted, str) and wanted in known:
        return known[wanted]
    if isinstance(wanted, kind) and not isinstance(wanted, type):
        return wanted  # type: ignore[no-any-return]
    close = near_misses(wanted, known) if isinstance(wanted, str) else ()
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise QcoreError(f"{wanted!r} is no {what}.{hint} There are: {', '.join(known)}. {own}")
