"""Defects in what is declared, and in how hooks are written."""

from __future__ import annotations

from typing import Any, ClassVar

import qcore
from qcore.annotation import annotate_graph
from qcore.plan import QuantizationPlan
from qcore.schemes import LayerScheme, QuantizationScheme
from qcore_portable import SCHEMES, TABLE, PortableBackend

from .defects import calls, caught_by


def with_schemes(*schemes: Any) -> Any:
    return qcore.hookimpl(lambda self: schemes)


DYNAMIC = QuantizationScheme(8, 8, is_dynamic=True)
FOUR_BITS = QuantizationScheme(4, None)


@caught_by(
    calls("declared_scheme_is_executed", DYNAMIC),
    "declares 8da8w dynamic per-channel and quantizes none of linear, conv_bn_relu, residual_add",
)
class DeclaresASchemeThatItNeverUses(PortableBackend):
    supported_schemes = with_schemes(*SCHEMES, DYNAMIC)


@caught_by(
    calls("declared_scheme_is_executed", FOUR_BITS),
    "4w weight-only per-channel was selected, and linear has 8 bits on the edge from",
)
class AnnotatesEightBitsWhereFourAreDeclared(PortableBackend):
    supported_schemes = with_schemes(FOUR_BITS, *SCHEMES)

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        wide = plan.selectors.mapped(lambda _: SCHEMES[2].to_config())
        return annotate_graph(model, QuantizationPlan(wide), TABLE, "portable")


@caught_by(calls("schemes_are_hashable_and_unique"), "8a8w static per-channel is declared twice")
class DeclaresASchemeTwice(PortableBackend):
    supported_schemes = with_schemes(*SCHEMES, SCHEMES[0])


@caught_by(
    calls("schemes_are_hashable_and_unique"),
    "the hash of QuantizationScheme.* raised TypeError: unhashable type",
)
class DeclaresASchemeThatCannotBeHashed(PortableBackend):
    supported_schemes = with_schemes(*SCHEMES, QuantizationScheme(8, 8, ["per_channel"]))  # type: ignore[arg-type]


@caught_by(calls("schemes_are_the_same_every_time"), "supported_schemes answers differently")
class DeclaresOtherSchemesEveryTime(PortableBackend):
    asked: ClassVar[list[int]] = []

    @qcore.hookimpl
    def supported_schemes(self) -> Any:
        self.asked.append(1)
        return SCHEMES[len(self.asked) % 2 :]


@caught_by(
    calls("declared_source_scheme_is_executed", LayerScheme(8, 8, layer="embedding")),
    "quantize_ of a model with 8a8w static per-channel .embedding. raised",
)
class DeclaresEmbeddingsWithActivations(PortableBackend):
    supported_schemes = with_schemes(SCHEMES[0], LayerScheme(8, 8, layer="embedding"))


HOOKS = calls("hooks_have_the_signatures_of_the_specification")


@caught_by(HOOKS, "annotate gives plan a default")
class GivesAHookParameterADefault(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any = None) -> Any:
        return annotate_graph(model, plan, TABLE, "portable")


@caught_by(HOOKS, "anotate is no hook of qcore. Did you mean 'annotate'")
class MisspellsAHook(PortableBackend):
    @qcore.hookimpl
    def anotate(self, model: Any, plan: Any) -> Any:
        return annotate_graph(model, plan, TABLE, "portable")


@caught_by(HOOKS, "validate_partial has the name of a hook and is not marked")
class ForgetsToMarkAHook(PortableBackend):
    def validate_partial(self, model: Any, plan: Any, report: Any) -> Any:
        return []


@caught_by(HOOKS, "breaks the hook contract.*graph")
class NamesAParameterOtherwise(PortableBackend):
    @qcore.hookimpl
    def annotate(self, graph: Any, plan: Any) -> Any:
        return annotate_graph(graph, plan, TABLE, "portable")


@caught_by(calls("an_unknown_option_is_refused"), "unknown option of get_quantizer was accepted")
class SwallowsEveryOption(PortableBackend):
    def __init__(self, **options: Any) -> None:
        pass


@caught_by(calls("every_quantizer_has_a_backend_of_its_own"), "two quantizers share one instance")
class IsASingleton(PortableBackend):
    instance: ClassVar[Any] = None

    def __new__(cls) -> Any:
        cls.instance = cls.instance or super().__new__(cls)
        return cls.instance
