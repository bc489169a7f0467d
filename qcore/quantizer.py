"""The quantizer: a torchao ``Quantizer`` that drives a backend's hooks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import torch
from attrs import evolve
from torch.fx import GraphModule

from qcore.annotation.in_place import make_functional
from qcore.annotation.origins import account_for, remember_captured
from qcore.backend import BackendHooks
from qcore.calibration import CalibrationMethod, calibration_method, with_method
from qcore.capture import inline_grad_modes, remove_guards
from qcore.compat.torch import TRACING
from qcore.compat.torchao import Quantizer as TorchaoQuantizer
from qcore.compat.torchao import is_preparing_for_training
from qcore.errors import (
    LoweringError,
    PartialQuantizationError,
    SelectionError,
    UnsupportedSchemeError,
    warn,
)
from qcore.flow import QuantizedModel, quantize
from qcore.graph import BODY, control_flow_bodies
from qcore.lowering import LoweredProgram, export_for_lowering
from qcore.plan import FilterFunction, QuantizationPlan, RuleKind, Selectors
from qcore.progress import showing_stages, stage
from qcore.quiet import quiet
from qcore.registry import load_backend
from qcore.report import AnnotationReport, Severity, read_decisions, write_decisions
from qcore.schemes import (
    IoScheme,
    LayerScheme,
    QuantizationConfig,
    QuantizationScheme,
    SchemeLike,
    check_scheme,
    listed,
    resolve_config,
)
from qcore.training import TRAINING, training_layers, with_fake_quantization

__all__ = ["Quantizer", "get_quantizer"]

#: Shares of a lowering that are usual; a backend's ``stages`` say more of the second.
_EXPORT = {"export": 0.1}
_LOWER = {"lower": 0.9}


class Quantizer(TorchaoQuantizer):  # type: ignore[misc]
    """Quantizes models for one backend, in torchao's PT2E flow or with ``qcore.quantize``.

    Every ``set_*`` method returns the quantizer. Each takes a configuration, a scheme's name such
    as ``"8a8w"`` or ``"8a8w per-tensor"``, or ``None``, which leaves the selected part in float.
    The most specific rule wins, whatever the order of the calls: node name, module name, module
    type, operator type, io, global.

    Args:
        backend: An instance of a backend class; ``qcore.get_quantizer`` builds one by name.
        name: The backend's name; by default what its ``name`` attribute says.

    Attributes:
        report: The decisions of the last annotation, for the user; ``None`` before it. Those that
            the flow goes by are in the model's ``meta``.

    Raises:
        BackendLoadError: The backend breaks the hook contract.
    """

    def __init__(self, backend: object, name: str | None = None) -> None:
        super().__init__()
        self._hooks = BackendHooks(backend, name or str(getattr(backend, "name", "backend")))
        declared = self._hooks.supported_schemes()
        self._source_schemes = tuple(s for s in declared if isinstance(s, LayerScheme))
        self._io_schemes = tuple(s for s in declared if isinstance(s, IoScheme))
        others = (LayerScheme, IoScheme)
        self._schemes = tuple(s for s in declared if not isinstance(s, others))
        self._selectors = Selectors()
        self._calibration: CalibrationMethod | None = None
        self.report: AnnotationReport | None = None

    def __repr__(self) -> str:
        rules = ", ".join(str(rule) for rule in self._selectors.rules())
        return f"<{type(self).__name__} {self.name}: {rules or 'nothing selected'}>"

    def unset(self) -> Quantizer:
        """Return a quantizer of the same backend with nothing selected."""
        return Quantizer(self.backend, self.name)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self._hooks.name

    @property
    def backend(self) -> object:
        """The backend's instance, with its options."""
        return self._hooks.backend

    @property
    def supported_schemes(self) -> tuple[QuantizationScheme, ...]:
        """The schemes of the PT2E flow that the backend executes, the preferred ones first."""
        return self._schemes

    @property
    def source_schemes(self) -> tuple[LayerScheme, ...]:
        """The schemes of ``qcore.quantize_`` that the backend executes; may be empty."""
        return self._source_schemes

    def set_global(self, quantization_config: SchemeLike) -> Self:
        """Select everything that no other rule selects."""
        return self._add(RuleKind.GLOBAL, "", self._config(quantization_config))

    def set_io(self, quantization_config: SchemeLike) -> Self:
        """Select the inputs and outputs of the model.

        Args:
            quantization_config: Also one without ``weight``, as for uint8 inputs, where the
                backend has a scheme for that.

        Returns:
            The quantizer.
        """
        config = quantization_config
        if isinstance(config, QuantizationConfig) and config.weight is None and self._io_schemes:
            check_scheme(IoScheme.from_config(config), self._io_schemes, self.name)
        else:
            config = self._config(config)
        return self._add(RuleKind.IO, "", config)

    def set_operator_type(self, operator_type: object, quantization_config: SchemeLike) -> Self:
        """Select an operator, such as ``torch.ops.aten.linear.default``."""
        return self._add(RuleKind.OPERATOR_TYPE, operator_type, self._config(quantization_config))

    def set_module_type(self, module_type: object, quantization_config: SchemeLike) -> Self:
        """Select the modules of a class and its subclasses; the innermost such module decides."""
        return self._add(RuleKind.MODULE_TYPE, module_type, self._config(quantization_config))

    def set_module_name(self, module_name: str, quantization_config: SchemeLike) -> Self:
        """Select a module with everything in it; ``*`` stands within a component, ``**`` across."""
        return self._add(RuleKind.MODULE_NAME, module_name, self._config(quantization_config))

    def set_node_name(self, node_name: str, quantization_config: SchemeLike) -> Self:
        """Select one node of the captured graph by name."""
        return self._add(RuleKind.NODE_NAME, node_name, self._config(quantization_config))

    def set_filter_function(self, filter_fn: FilterFunction | None) -> Self:
        """Leave every operator in float for whose node ``filter_fn`` returns false."""
        if filter_fn is not None and not callable(filter_fn):
            raise SelectionError(
                f"set_filter_function takes a function from a node to a bool, got {filter_fn!r}."
            )
        self._selectors.filter_function = filter_fn
        return self

    def set_calibration(self, method: str | CalibrationMethod) -> Self:
        """Choose how ranges of static activations are found, whatever rule selects them.

        Args:
            method: ``"histogram"``, the default, which takes the range of least squared error;
                ``"min_max"``; or a :class:`qcore.calibration.CalibrationMethod` of your own. An
                observer in a configuration of yours stays as it is.

        Returns:
            The quantizer.
        """
        self._calibration = calibration_method(method)
        return self

    def _add(self, kind: RuleKind, selected: object, config: Any) -> Self:
        self._selectors.add(kind, selected, config)
        return self

    def _config(self, wanted: SchemeLike) -> Any:
        if wanted is None and not getattr(self.backend, "partial_quantization", True):
            raise PartialQuantizationError(
                f"{self.name} executes whole models in integers, so no part of one stays in float. "
                "Pass a scheme, or run that part outside of the model."
            )
        return resolve_config(wanted, self._schemes, self.name, self._source_schemes)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring a captured model into the form that the backend annotates.

        Args:
            model: The captured model; changed in place.

        Returns:
            The model, with the same outputs.
        """
        remove_guards(model)
        inline_grad_modes(model)
        remember_captured(model)
        make_functional(model)
        if TRAINING not in model.meta and is_preparing_for_training():
            model.meta[TRAINING] = True
        with TRACING:
            return self._hooks.transform_for_annotation(model, self._plan(model))

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every node that the rules select and the backend quantizes.

        Args:
            model: The captured model.

        Returns:
            The model; :attr:`report` then holds a decision for every compute node.

        Raises:
            SelectionError: A rule matches nothing.
        """
        report = self.annotated(model)
        if report.decisions and not report.quantized and not list(control_flow_bodies(model)):
            warn(self._nothing_quantized(report))
        return model

    def annotated(self, model: GraphModule) -> AnnotationReport:
        """Annotate a model, leave the decisions in its ``meta`` and return them.

        Unlike :meth:`annotate`, it says nothing if nothing is quantized.
        """
        plan = self._plan(model)
        if BODY not in model.meta:  # A rule need not match in every body.
            plan.check_matches(model)
            for _, _, body in control_flow_bodies(model):
                body.meta[BODY] = True
        self.report = self._hooks.annotate(model, plan)
        write_decisions(model, self.report)
        return self.report

    def require_quantized(self, report: AnnotationReport) -> AnnotationReport:
        """Raise if nothing was quantized.

        Args:
            report: The decisions for a model and for its bodies.

        Returns:
            The same report.

        Raises:
            SelectionError: With the reason for every node.
        """
        self.report = report
        if not report.quantized:
            raise SelectionError(self._nothing_quantized(report))
        return report

    def _nothing_quantized(self, report: AnnotationReport) -> str:
        if self._selectors.is_empty:
            return (
                f"Nothing is quantized: no rule was set. Select what to quantize, for example "
                f"set_global({self._schemes[0].name!r})."
            )
        return f"Nothing is quantized.\n{report}"

    def validate(self, model: GraphModule) -> None:
        """Raise if the backend cannot execute what stayed in float.

        The report then has decisions for what was folded or taken apart, too.

        Args:
            model: The annotated model.

        Raises:
            PartialQuantizationError: Naming every such node, the reason and what to do.
        """
        report = read_decisions(model) or AnnotationReport(self.name)
        found = self._hooks.validate_partial(model, self._plan(model), report)
        errors = [d for d in found if d.severity is Severity.ERROR]
        for diagnostic in found:
            if diagnostic.severity is Severity.WARNING:
                warn(f"{self.name}: {diagnostic}")
        if errors:
            lines = "\n".join(f"  {diagnostic}" for diagnostic in errors)
            raise PartialQuantizationError(
                f"{self.name} cannot execute {len(errors)} nodes that would stay in float:\n{lines}"
            )
        self.report = account_for(model, report)
        write_decisions(model, self.report)

    def _plan(self, model: GraphModule) -> QuantizationPlan:
        """Resolve the rules for a model: the calibration method is that of the quantizer.

        Where the model is trained, observers are fake quantization.
        """
        rules = self._selectors
        if self._calibration is not None:
            rules = rules.mapped(partial(with_method, self._calibration))
        if TRAINING in model.meta:
            running = bool(model.meta[TRAINING])
            rules = rules.mapped(lambda c: self._trained(c, running))
        return QuantizationPlan(rules)

    def _trained(self, config: QuantizationConfig, running: bool) -> QuantizationConfig:
        trained = with_fake_quantization(config, running)
        scheme = QuantizationScheme.from_config(trained)
        if config.weight is None or any(s.covers(scheme) for s in self._schemes):
            return trained
        offered = listed(s for s in self._schemes if s.is_qat)
        advice = f"It trains {offered}." if offered else "It trains nothing."
        raise UnsupportedSchemeError(
            f"{self.name} has no fake quantization for {QuantizationScheme.from_config(config)}, "
            f"which a model that is trained needs. {advice} Train in float, and quantize with "
            "prepare_pt2e or qcore.quantize(..., is_qat=False) after that."
        )

    def quantize_with_submodules(
        self,
        model: Any,
        calibration_samples: Iterable[Any],
        is_qat: bool = False,
    ) -> GraphModule:
        """Quantize a model and the bodies of its ``torch.cond`` and ``while_loop`` operators.

        Args:
            model: A module, an exported program, or the graph module of one; never changed.
            calibration_samples: Inputs, as for ``qcore.quantize``; at least one for each path.
            is_qat: Insert fake quantization and run the samples through it.

        Returns:
            The converted model. A body that no sample reached stays in float, with a warning.

        Raises:
            CalibrationError: The samples are missing or do not fit.
            SelectionError: A rule matches nothing.
        """
        return quantize(model, self, calibration_samples, is_qat=is_qat).model

    def lower(
        self,
        model: Any,
        example_inputs: Any,
        *,
        dynamic_shapes: Any = None,
        progress: bool | None = None,
        **options: Any,
    ) -> LoweredProgram:
        """Turn a quantized model into a program for the device.

        Args:
            model: What ``convert_pt2e``, ``qcore.quantize`` or ``qcore.load_quantized`` returned
                (the result or its ``model``), or a module that
                ``qcore.quantize_``, torchao's ``quantize_`` or its
                ``Int8DynActInt4WeightQuantizer`` has treated. Never changed.
            example_inputs: Inputs as the model takes them; sizes that a graph was captured with as
                dynamic stay dynamic.
            dynamic_shapes: As ``torch.export.export`` takes it, for sizes that vary.
            progress: Show the stages on stderr, and about how long they will take; ``None``
                means: on a terminal.
            **options: Options of the backend's ``lower``.

        Returns:
            The program, with a report of what was delegated.

        Raises:
            LoweringError: ``model`` is no quantized model, ``example_inputs`` do not fit, or the
                model cannot be lowered.
            UnsupportedSchemeError: The backend does not execute a layer that ``quantize_`` left, or
                a scheme that the model was quantized with for another backend.
            CaptureError: The module cannot be exported.
        """
        if isinstance(model, QuantizedModel):
            model = model.model
        if isinstance(model, GraphModule) and (training := training_layers(model)):
            raise LoweringError(
                f"{', '.join(training)}: layers of the model are still training. Batch norms would "
                "normalize with the statistics of each batch, dropouts drop values at random. "
                "Before convert_pt2e call "
                "torchao.quantization.pt2e.move_exported_model_to_eval(prepared)."
            )
        if isinstance(model, GraphModule):
            self._require_executed(read_decisions(model))
        if isinstance(model, torch.nn.Module) and not isinstance(model, GraphModule):
            exported = self._export_module(model, example_inputs, dynamic_shapes)
            if exported is not None:
                model, example_inputs, dynamic_shapes = exported, None, None
        seconds: dict[str, float] = {}
        stages = {**_EXPORT, **getattr(self.backend, "stages", _LOWER)}
        with showing_stages("lower", stages, progress):
            with stage("export", seconds), quiet():
                exported = export_for_lowering(model, example_inputs, dynamic_shapes)
            program = self._hooks.lower(exported, options)
        report = evolve(program.report, seconds={**seconds, **program.report.seconds})
        call = exported.call_spec.in_spec if program.call is None else program.call
        return evolve(program, report=report, call=call)

    def _require_executed(self, report: AnnotationReport | None) -> None:
        """Refuse a model with a scheme of another backend that this one does not execute."""
        if report is None or report.backend == self.name:
            return
        for config in (d.config for d in report.quantized if d.config and d.config.weight):
            scheme = evolve(QuantizationScheme.from_config(config), is_qat=False)
            if not any(offered.covers(scheme) for offered in self._schemes):
                raise UnsupportedSchemeError(
                    f"The model was quantized for {report.backend} with {scheme}, and {self.name} "
                    f"executes {listed(self._schemes)}. Quantize it with "
                    f"get_quantizer({self.name!r}), or lower it with the quantizer for "
                    f"{report.backend}."
                )

    def _export_module(self, model: torch.nn.Module, inputs: Any, dynamic_shapes: Any) -> Any:
        from qcore.source.export import check_layers, export_quantized
        from qcore.source.modules import is_quantized

        if not any(map(is_quantized, model.modules())):
            return None
        check_layers(model, self._source_schemes, self.name)
        return export_quantized(model, inputs, dynamic_shapes)


def get_quantizer(name: str, **options: Any) -> Quantizer:
    """Build a quantizer for a backend.

    Args:
        name: An installed or registered backend, as ``qcore.backends()`` lists it.
        **options: Options of that backend's class, such as a compile spec or a target.

    Returns:
        A torchao ``Quantizer``.

    Raises:
        UnknownBackendError: No backend has that name.
        BackendConflictError: Two distributions claim it.
        BackendLoadError: It cannot be imported, breaks the hook contract, or lacks an option.
        ApiVersionError: It was written for another version of the hooks.
    """
    return Quantizer(load_backend(name, options), name=name)
