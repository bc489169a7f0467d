"""The backend under test, with what the checks share: captured models and annotated graphs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from attrs import define, evolve, field, frozen
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

import qcore
from qcore.capture import Sample, capture
from qcore.errors import PartialQuantizationError, QcoreError, QcoreWarning
from qcore.flow import QuantizedModel
from qcore.graph import clone
from qcore.lowering import LoweredProgram
from qcore.quantizer import Quantizer
from qcore.report import AnnotationReport
from qcore.schemes import LayerScheme, QuantizationScheme, SchemeLike
from qcore.testing.models import ZOO, ZooModel
from qcore.testing.operators import OPERATORS
from qcore.testing.packs import Pack, with_wide_ranges
from qcore.testing.requirements import Requirements
from qcore.testing.variants import VARIANTS

__all__ = [
    "PROBES",
    "Annotated",
    "ConformanceFailure",
    "Subject",
    "fresh_graph",
]

# Tried in this order for a scheme: what nearly every backend quantizes comes first.
PROBES = ("linear", "conv_bn_relu", "residual_add")


class ConformanceFailure(AssertionError):
    """A check that failed because a step that it needs raised something."""


_KNOWN = {model.name: model for model in (*ZOO.values(), *OPERATORS.values(), *VARIANTS.values())}


@functools.cache
def _captured(name: str, is_qat: bool) -> GraphModule:
    return _capture(_KNOWN[name], is_qat)


def _capture(model: ZooModel, is_qat: bool) -> GraphModule:
    example = Sample.of(model.samples[0])
    graph = capture(model.module(), example, dynamic_shapes=model.dynamic_shapes, is_qat=is_qat)
    if not is_qat:
        _fuse_conv_bn_(graph)  # As prepare_pt2e does before it calls the quantizer.
    return graph


def fresh_graph(model: ZooModel, is_qat: bool = False) -> GraphModule:
    """Return a captured model with a graph and tensors of its own.

    Args:
        model: A model of the zoo, which is captured once, or one like them.
        is_qat: Capture it in training mode.

    Returns:
        The graph module; free to be changed.
    """
    known = _KNOWN.get(model.name) is model
    graph = clone(_captured(model.name, is_qat) if known else _capture(model, is_qat))
    for module in graph.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.clone())
    return graph


@frozen(eq=False)
class Annotated:
    """A graph that the backend has annotated.

    Attributes:
        graph: With annotations in its nodes' metadata.
        report: The decisions.
        quantizer: What annotated it.
    """

    graph: GraphModule
    report: AnnotationReport
    quantizer: Quantizer

    def node(self, name: str) -> Node:
        """Return a node by name."""
        return next(node for node in self.graph.graph.nodes if node.name == name)


@define(eq=False)
class Subject:
    """The backend under test.

    Attributes:
        name: Its name.
        requirements: What it says about itself.
        record: Called with a kind of fact, its key and its value as checks pass; what support
            pages are made of.
        models: The names of the models that are executed; ``None`` for all.
    """

    name: str
    requirements: Requirements = field(factory=Requirements)
    record: Callable[[str, str, str], None] = lambda kind, key, value: None
    models: Collection[str] | None = None
    _cache: dict[Any, Any] = field(factory=dict, init=False, repr=False)

    def includes(self, model: str) -> bool:
        """Say whether a model is among those that are executed."""
        return self.models is None or model in self.models

    def cached(self, key: Any, build: Callable[[], Any]) -> Any:
        """Return what ``build`` gives, building it once."""
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]

    def not_asked(self, why: str) -> NoReturn:
        """Skip a check that has nothing to ask of this backend.

        Args:
            why: What it says about itself, as in ``it declares no scheme``.
        """
        import pytest

        pytest.skip(f"not asked of {self.name}: {why}")

    def needs(self, requirement: str, stated: bool = True) -> None:
        """Skip a check that is asked of other backends only.

        Args:
            requirement: A flag of the requirements.
            stated: What it must be for the check to be asked.
        """
        value = getattr(self.requirements, requirement)
        if value is not stated:
            self.not_asked(f"it states {requirement}={value}")

    @contextmanager
    def step(self, what: str, advice: str = "") -> Iterator[None]:
        """Turn whatever a step raises into a failed check that says which step it was.

        Args:
            what: What is done, as in ``annotate linear with 8a8w``.
            advice: What to mend.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", QcoreWarning)
                yield
        except (AssertionError, PartialQuantizationError):
            raise
        except Exception as error:
            notes = "; ".join(getattr(error, "__notes__", ()))
            raise ConformanceFailure(
                f"{self.name}: {what} raised {type(error).__name__}: {error}"
                + (f" ({notes})" if notes else "")
                + (f"\n{advice}" if advice else "")
            ) from error

    @property
    def loads(self) -> bool:
        """Whether the backend is found and can be imported."""

        def load() -> bool:
            try:
                return bool(qcore.backends()[self.name].load())
            except (KeyError, QcoreError):
                return False

        found: bool = self.cached("loads", load)
        return found

    def quantizer(self) -> Quantizer:
        """Build a quantizer, as users do."""
        with self.step("get_quantizer"):
            return qcore.get_quantizer(self.name, **self.requirements.options)

    @property
    def schemes(self) -> tuple[QuantizationScheme, ...]:
        """The declared schemes of the PT2E flow."""
        declared: tuple[QuantizationScheme, ...] = self.cached(
            "schemes", lambda: self.quantizer().supported_schemes
        )
        return declared

    @property
    def source_schemes(self) -> tuple[LayerScheme, ...]:
        """The declared schemes of ``qcore.quantize_``."""
        declared: tuple[LayerScheme, ...] = self.cached(
            "source_schemes", lambda: self.quantizer().source_schemes
        )
        return declared

    @property
    def executed_schemes(self) -> tuple[QuantizationScheme, ...]:
        """The declared schemes of the PT2E flow, those for training left out.

        A check of each is skipped where there is none.
        """
        found = tuple(scheme for scheme in self.schemes if not scheme.is_qat)
        return found or self.not_asked("it declares no scheme of the PT2E flow")

    @property
    def main_scheme(self) -> QuantizationScheme:
        """The first declared scheme that is not for training."""
        return self.executed_schemes[0]

    @property
    def evidence(self) -> str:
        """What is shown by lowering and running, for support pages."""
        if not self.requirements.lowers:
            return "converts"
        if self.requirements.runs:
            return "runs"
        return "verified" if self.requirements.verifies else "lowers"

    def selected(self, scheme: SchemeLike) -> Quantizer:
        """Build a quantizer that selects everything."""
        with self.step(f"set_global({_short(scheme)})"):
            return self.quantizer().set_global(scheme)

    def in_float(self) -> Quantizer | None:
        """Build a quantizer that leaves everything in float; ``None`` where that is refused."""
        try:
            return self.quantizer().set_global(None)
        except PartialQuantizationError:
            if self.requirements.partial:
                raise
            return None

    def annotate(self, graph: GraphModule, quantizer: Quantizer, what: str) -> Annotated:
        """Transform and annotate a graph; validation is left out.

        Args:
            graph: A captured model; changed.
            quantizer: Whatever the check has selected.
            what: The model's name, for messages.

        Returns:
            The graph and the decisions.
        """
        with self.step(f"transform_for_annotation of {what}"):
            graph = quantizer.transform_for_annotation(graph)
        with self.step(f"annotate of {what}"):
            quantizer.annotate(graph)
        report = quantizer.report
        assert report is not None
        return Annotated(graph, report, quantizer)

    def annotated(self, model: ZooModel, scheme: QuantizationScheme | None = None) -> Annotated:
        """Annotate a model of the zoo, all of it with one scheme; the result is shared.

        Args:
            model: The model.
            scheme: The scheme; ``None`` means the main one.

        Returns:
            The graph, which must not be changed, and the decisions.
        """
        chosen = scheme or self.main_scheme
        found: Annotated = self.cached(
            ("annotated", model.name, chosen),
            lambda: self.annotate(
                fresh_graph(model, chosen.is_qat), self.selected(chosen), f"{model.name}, {chosen}"
            ),
        )
        return found

    def quantize(self, model: ZooModel, scheme: QuantizationScheme) -> QuantizedModel:
        """Take a model of the zoo through ``qcore.quantize``; the result is shared.

        Args:
            model: The model.
            scheme: What everything is selected with.

        Returns:
            The converted model and the decisions.
        """

        def go() -> QuantizedModel:
            with self.step(f"qcore.quantize of {model.name} with {scheme}"):
                return qcore.quantize(
                    fresh_graph(model, scheme.is_qat),
                    self.selected(scheme),
                    model.samples,
                    is_qat=scheme.is_qat,
                    # It would hide coarse weights, seen on the samples that it learned from.
                    bias_correction=False,
                )

        found: QuantizedModel = self.cached(("quantized", model.name, scheme), go)
        return found

    def probe(self, scheme: QuantizationScheme) -> ZooModel | None:
        """Return the first model of which the scheme quantizes something, or ``None``."""
        for name in PROBES:
            if self.annotated(ZOO[name], scheme).report.quantized:
                return ZOO[name]
        return None

    def lower(self, model: ZooModel, scheme: QuantizationScheme) -> LoweredProgram:
        """Lower a model of the zoo; the program is shared.

        Args:
            model: The model.
            scheme: What it is quantized with.

        Returns:
            The program.
        """
        found: LoweredProgram = self.cached(
            ("lowered", model.name, scheme), lambda: self.lower_again(model, scheme)
        )
        return found

    def lower_again(self, model: ZooModel, scheme: QuantizationScheme) -> LoweredProgram:
        """Lower a model of the zoo, whether it was before or not."""
        converted = self.quantize(model, scheme).model
        with self.step(f"lower of {model.name} with {scheme}"):
            return self.quantizer().lower(
                converted, model.samples[0], **self.requirements.lower_options
            )

    def lower_pack(
        self, pack: Pack, scheme: QuantizationScheme
    ) -> tuple[GraphModule, LoweredProgram]:
        """Quantize and lower models side by side; the result is shared.

        Args:
            pack: The models.
            scheme: What they are quantized with; ranges are twice as wide as needed, where the
                backend has that.

        Returns:
            The converted model and its program.
        """
        key = ("pack", tuple(pack.models), scheme)
        if key not in self._cache:
            self._cache[key] = self._lower_pack(pack, scheme)
        found: tuple[GraphModule, LoweredProgram] = self._cache[key]
        return found

    def _lower_pack(
        self, pack: Pack, scheme: QuantizationScheme
    ) -> tuple[GraphModule, LoweredProgram]:
        what = f"{len(pack.models)} models with {scheme}"
        with self.step(f"qcore.quantize of {what}"):
            wide = self.requirements.wide_ranges
            quantizer = self.selected(with_wide_ranges(scheme) if wide else scheme)
            model = qcore.quantize(
                pack.module(), quantizer, [pack.inputs], bias_correction=False
            ).model
        with self.step(f"lower of {what}"):
            options = self.requirements.lower_options
            return model, self.quantizer().lower(model, pack.inputs, **options)

    def run(self, program: LoweredProgram, inputs: tuple[Any, ...], what: str) -> Any:
        """Execute a program where the backend can, else have it verified.

        Args:
            program: The program.
            inputs: The model's positional arguments.
            what: The model's name, for messages.

        Returns:
            What the program returns, or ``None`` where nothing on this machine executes it.
        """
        if self.requirements.verifies:
            self.verify(program, inputs, what)
        if not self.requirements.runs:
            return None
        with self.step(f"program.run of {what}"):
            return program.run(*inputs)

    def verify(self, program: LoweredProgram, inputs: tuple[Any, ...], what: str) -> None:
        """Have a program say itself whether it computes what it should.

        Args:
            program: The program.
            inputs: The model's positional arguments.
            what: The model's name, for messages.
        """
        with self.step(f"verify of {what}"):
            verdict = program.verify(*inputs)  # type: ignore[attr-defined]
        assert verdict.ok, f"{self.name}: program.verify of {what} says:\n{verdict}"

    def expect_refusal(
        self,
        what: str,
        call: Callable[[], Any],
        *said: str,
        error: type[QcoreError] = QcoreError,
    ) -> str:
        """Check that a call raises a qcore error whose message names what was asked.

        Args:
            what: What is asked for.
            call: Asks for it.
            *said: What the message must contain.
            error: What must be raised.

        Returns:
            The message.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", QcoreWarning)
                call()
        except error as refusal:
            message = str(refusal)
        except Exception as other:
            raise ConformanceFailure(
                f"{self.name}: {what} raised {type(other).__name__}: {other}\nRaise a "
                f"{error.__name__} that says what was asked, what is offered and what to do next."
            ) from other
        else:
            raise ConformanceFailure(f"{self.name}: {what} was accepted; it must be refused.")
        for part in said:
            assert part in message, (
                f"{self.name}: the refusal of {what} does not mention {part!r}:\n{message}"
            )
        return message


def without_qat(scheme: QuantizationScheme) -> QuantizationScheme:
    """Return the scheme that a model trained with it is executed with."""
    return evolve(scheme, is_qat=False)


def _short(scheme: SchemeLike) -> str:
    return str(scheme) if isinstance(scheme, (QuantizationScheme, str)) else "a configuration"
