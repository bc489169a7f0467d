"""Selection for source quantization: which rule decides about which layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import frozen
from torch import nn

from qcore.errors import SelectionError
from qcore.names import PathRules, compile_glob, nothing_selected, type_name, type_names
from qcore.schemes import Layer, LayerScheme
from qcore.source.modules import has_weight, is_quantized, stored_weight
from qcore.source.scheme import SourceScheme, SourceSchemeLike, read_scheme

__all__ = ["Choice", "FilterFunction", "Layers", "ModelLayer", "RuleSet", "Rules", "SourceRule"]

FilterFunction: TypeAlias = Callable[[nn.Module, str], bool]
Rules: TypeAlias = Mapping[str | type[nn.Module], SourceSchemeLike]


@frozen(eq=False)
class ModelLayer:
    """A layer with a weight.

    Attributes:
        module: The layer.
        names: Its names in the model, the first one first.
        types: The classes of the modules around it, the layer's own last, as qualified names.
        kind: What source quantization can treat it as; ``None`` where it cannot.
        reason: Why it cannot.
    """

    module: nn.Module
    names: tuple[str, ...]
    types: tuple[str, ...]
    kind: Layer | None
    reason: str = ""

    @property
    def name(self) -> str:
        """The first of its names; the class for a model that is itself one layer."""
        return self.names[0] or type(self.module).__name__


@frozen
class SourceRule:
    """One rule: a module's name or type, or everything, and the scheme for it."""

    key: str
    is_type: bool
    scheme: SourceScheme | None

    def __str__(self) -> str:
        given = "None" if self.scheme is None else f"'{self.scheme}'"
        if not self.key:
            return f"scheme={given}"
        return f"rules[{self.key.rpartition('.')[2] if self.is_type else repr(self.key)}]={given}"


@frozen
class Choice:
    """The rule that decides about a layer.

    Attributes:
        rule: The rule.
        is_direct: Whether it names the layer itself, not a module around it or everything.
    """

    rule: SourceRule
    is_direct: bool


class Layers:
    """The layers of a model that have a weight, each once.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        self.paths = frozenset(name for group in names.values() for name in group)
        by_name = {name: module for module, group in names.items() for name in group}
        self.types = frozenset(type_name(type(module)) for module in names)
        self.all = tuple(
            ModelLayer(module, tuple(group), _types_around(group[0], by_name), *_kind(module))
            for module, group in names.items()
            if has_weight(module)
        )


def _types_around(name: str, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    return tuple(type_name(type(modules[path])) for path in reversed(_paths(name)))


def _paths(name: str) -> list[str]:
    """Return a module's name and those of the modules around it, the innermost first."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _kind(module: nn.Module) -> tuple[Layer | None, str]:
    kind: Layer
    if isinstance(module, nn.Linear):
        kind, base = "linear", nn.Linear
    elif isinstance(module, nn.Embedding):
        kind, base = "embedding", nn.Embedding
    else:
        return None, f"it is a {type(module).__name__}, neither a linear layer nor an embedding"
    # nn.MultiheadAttention reads its projection's weight without calling the layer.
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None, "nn.MultiheadAttention reads its weight without calling it"
    if type(module).forward is not base.forward:
        return None, f"its class {type(module).__name__} has a forward of its own"
    if is_quantized(module):
        return kind, ""
    weight = stored_weight(module)
    if weight is None:
        return None, "its weight is computed from other parameters"
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return None, f"its weight is {weight.dtype}"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return None, "max_norm rewrites the weight at every call"
    return kind, ""


class RuleSet:
    """The rules of one call, with one meaning: the most specific one wins.

    A name wins over a type, the deepest name and the innermost type over others, and all of them
    over the scheme for everything.

    Args:
        default: The scheme for every linear layer that no rule selects, if any.
        rules: Scheme by module name (globs allowed) or module class.
        supported: The backend's schemes of source quantization.
        backend: The backend's name, for messages.

    Raises:
        SelectionError: A key is neither a name nor a module class.
        UnsupportedSchemeError: A scheme is unknown, or the backend has none of that name.
    """

    def __init__(
        self,
        default: SourceScheme | None,
        rules: Rules,
        supported: Sequence[LayerScheme],
        backend: str,
    ) -> None:
        self._default = SourceRule("", False, default) if default is not None else None
        self._names: dict[str, SourceRule] = {}
        self._types: dict[str, SourceRule] = {}
        for key, wanted in rules.items():
            scheme = read_scheme(wanted, supported, backend)
            if isinstance(key, str) and key:
                self._names[key] = SourceRule(key, False, scheme)
            elif inspect.isclass(key) and issubclass(key, nn.Module):
                name = type_name(key)
                self._types[name] = SourceRule(name, True, scheme)
            else:
                raise SelectionError(
                    f"rules takes module names and module classes as keys, got {key!r}. Write "
                    "{'lm_head': '8da8w', torch.nn.Embedding: '8w'}; for every linear layer pass "
                    "scheme."
                )
        self._by_path = PathRules(self._names)

    def __iter__(self) -> Iterator[SourceRule]:
        yield from self._names.values()
        yield from self._types.values()
        if self._default is not None:
            yield self._default

    def choose(self, layer: ModelLayer) -> Choice | None:
        """Return the rule that decides about a layer; ``None`` where none selects it."""
        depths = [_paths(name) for name in layer.names]
        for depth in range(max(map(len, depths))):
            for paths in depths:
                rule = self._by_path.get(paths[depth]) if depth < len(paths) else None
                if rule is not None:
                    return Choice(rule, depth == 0)
        for depth, name in enumerate(reversed(layer.types)):
            typed = next((self._types[t] for t in type_names(name) if t in self._types), None)
            if typed is not None:
                return Choice(typed, depth == 0)
        return None if self._default is None else Choice(self._default, False)

    def check_matches(self, layers: Layers) -> None:
        """Raise for rules that match no module.

        Args:
            layers: The layers of the model.

        Raises:
            SelectionError: Naming every such rule and what is close to it.
        """
        problems = []
        for rule in self:
            if rule.is_type:
                if not any(rule.key in type_names(name) for name in layers.types):
                    known: Any = layers.types
                    problems.append(nothing_selected(rule, rule.key, known, "module type", "model"))
            elif rule.key:
                pattern = compile_glob(rule.key)
                if not any(pattern.fullmatch(path) for path in layers.paths):
                    known = layers.paths
                    problems.append(nothing_selected(rule, rule.key, known, "module", "model"))
        if problems:
            raise SelectionError("\n".join(problems))
