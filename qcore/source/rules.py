"""Selection for source quantization: which rule decides about which layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from attrs import frozen
from torch import nn

from qcore.errors import SelectionError
from qcore.names import ModuleRules, type_name
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
        chains: For each of its names: name and qualified class of itself and of the modules
            around it, the innermost first.
        kind: What source quantization can treat it as; ``None`` where it cannot.
        reason: Why it cannot.
    """

    module: nn.Module
    names: tuple[str, ...]
    chains: tuple[tuple[tuple[str, str], ...], ...]
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
        types = {name: type_name(type(m)) for m, group in names.items() for name in group}
        self.types = frozenset(type_name(type(module)) for module in names)
        self.all = tuple(
            ModelLayer(module, tuple(group), _chains(group, types), *_kind(module))
            for module, group in names.items()
            if has_weight(module)
        )


def _chains(
    names: Sequence[str], types: Mapping[str, str]
) -> tuple[tuple[tuple[str, str], ...], ...]:
    chains = []
    for name in names:
        parts = name.split(".") if name else []
        paths = [".".join(parts[:end]) for end in range(len(parts), -1, -1)]
        chains.append(tuple((path, types[path]) for path in paths))
    return tuple(chains)


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
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return None, f"its weight is {weight.dtype}"
    if weight.shape[-1] == 1:
        return None, "its rows have one weight each, which is smaller than a scale"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return None, "max_norm rewrites the weight at every call"
    return kind, ""


class RuleSet:
    """The rules of one call, with the meaning of :class:`qcore.names.ModuleRules`.

    All of them win over the scheme for everything.

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
        names: dict[str, SourceRule] = {}
        types: dict[str, SourceRule] = {}
        for key, wanted in rules.items():
            scheme = read_scheme(wanted, supported, backend)
            if isinstance(key, str) and key:
                names[key] = SourceRule(key, False, scheme)
            elif inspect.isclass(key) and issubclass(key, nn.Module):
                name = type_name(key)
                types[name] = SourceRule(name, True, scheme)
            else:
                raise SelectionError(
                    f"rules takes module names and module classes as keys, got {key!r}. Write "
                    "{'lm_head': '8da8w', torch.nn.Embedding: '8w'}; for every linear layer pass "
                    "scheme."
                )
        self._rules = ModuleRules(names, types)

    def choose(self, layer: ModelLayer) -> Choice | None:
        """Return the rule that decides about a layer; ``None`` where none selects it."""
        found = self._rules.choose(*layer.chains)
        if found is not None:
            return Choice(found[0], found[1] == 0)
        return None if self._default is None else Choice(self._default, False)

    def check_matches(self, layers: Layers) -> None:
        """Raise for rules that match no module.

        Args:
            layers: The layers of the model.

        Raises:
            SelectionError: Naming every such rule and what is close to it.
        """
        found = self._rules.unmatched(layers.paths, layers.types, "model")
        problems = [text for _, text in found]
        if problems:
            raise SelectionError("\n".join(problems))
