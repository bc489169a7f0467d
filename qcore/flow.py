"""The whole flow in one call: capture, annotate, calibrate, convert."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import field, frozen
from torch.fx import GraphModule

from qcore.accuracy import far_from_float, remedies
from qcore.algorithms import Algorithm, BiasCorrection, chosen_algorithms
from qcore.calibration import CalibrationData, calibrate, check_arguments, check_sample
from qcore.capture import Sample, capture
from qcore.errors import ModelFileError, QcoreError
from qcore.graph import control_flow_bodies
from qcore.model_file import read_model, write_model
from qcore.progress import showing_stages, stage
from qcore.pt2e import Annotator, PreparedModel
from qcore.report import AnnotationReport, write_decisions
from qcore.training import TRAINING, freeze, observe_alone

__all__ = ["QuantizedModel", "QuantizerLike", "explain", "load_quantized", "quantize"]


#: Usual shares of the stages, measured on EfficientNet-Lite0 with 16 samples.
_SHARES = {"capture": 0.3, "prepare": 0.05, "calibrate": 0.45, "convert": 0.1, "compare": 0.1}


@runtime_checkable
class QuantizerLike(Annotator, Protocol):
    """What ``quantize`` takes: :class:`qcore.Quantizer`, or whatever annotates like it."""

    def require_quantized(self, report: AnnotationReport) -> AnnotationReport:
        """Raise if nothing was quantized; returns the report."""


@frozen
class QuantizedModel:
    """What ``qcore.quantize`` returns.

    Attributes:
        model: The converted model, with quantize and dequantize operators; runs in eager mode.
        report: A decision for every compute node, and the warnings of calibration.
        seconds: How long each stage took.
    """

    model: GraphModule = field(repr=False)
    report: AnnotationReport
    seconds: dict[str, float]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model to a file, whole or not at all; ``qcore.load_quantized`` reads it.

        Args:
            path: The file, by custom with the suffix ``.qpt2``.

        Returns:
            The path.

        Raises:
            ModelFileError: The file cannot be written.
        """
        return write_model(self.model, self.report, path)


def load_quantized(path: str | os.PathLike[str]) -> QuantizedModel:
    """Read a quantized model that was saved before, to run it or to lower it.

    Nothing in the file is run, so it need not be trusted.

    Args:
        path: A file written by :meth:`QuantizedModel.save`.

    Returns:
        The model and its report; ``seconds`` is empty.

    Raises:
        ModelFileError: There is no such file, it is no quantized model or cut short, other versions
            of torch or torchao wrote it, or it holds what could run code.
    """
    return QuantizedModel(*read_model(path), {})


def _refuse_pickling(model: GraphModule) -> None:
    def refuse(_: GraphModule, protocol: int = 2) -> Any:
        raise ModelFileError(
            "A quantized model is not pickled, by torch.save or otherwise. Write it with "
            "result.save('model.qpt2') and read it with qcore.load_quantized; torch.export.save "
            "takes it exported."
        )

    type(model).__reduce_ex__ = refuse  # Every graph module has a class of its own.


def quantize(
    model: Any,
    quantizer: QuantizerLike,
    calibration_data: Iterable[Any],
    *,
    is_qat: bool = False,
    algorithms: Iterable[str | Algorithm] = (BiasCorrection.name,),
    bias_correction: bool = True,
    dynamic_shapes: Any = None,
    progress: bool | None = None,
) -> QuantizedModel:
    """Quantize a model: capture it, annotate, calibrate, convert.

    Args:
        model: A ``torch.nn.Module`` (its training mode is kept), an ``ExportedProgram``, or the
            ``GraphModule`` of one; never changed.
        quantizer: What to quantize, from ``qcore.get_quantizer``.
        calibration_data: Samples: tensors, tuples of positional inputs, or mappings of keyword
            inputs, float32 where the model is, finite and of one shape. A module is captured with
            the first. With dynamic schemes alone, one sample is enough.
        is_qat: Insert fake quantization instead of observers. Nobody trains here, so batch norms
            keep their statistics, and the fake quantization measures and rounds nothing; to train,
            use ``prepare_qat_pt2e``.
        algorithms: What changes weights before observing, or weights and biases from what the
            samples show, in this order: names, or objects of your own; see
            :class:`qcore.algorithms.Algorithm`. By default the bias of each layer with static
            activations absorbs the mean error of its rounded weights.
        bias_correction: False leaves that one out.
        dynamic_shapes: As for ``torch.export.export``, where sizes vary; only for a module.
        progress: Show a progress bar on stderr; ``None`` means: on a terminal.

    Returns:
        The converted model and the report.

    Raises:
        CaptureError: The model cannot be exported.
        SelectionError: A rule matches nothing, or nothing at all would be quantized.
        PartialQuantizationError: The backend cannot leave in float what would stay so.
        CalibrationError: The samples are missing or do not fit.
        QcoreError: No algorithm has that name.
    """
    if not isinstance(quantizer, QuantizerLike):
        raise QcoreError(
            f"quantize takes a quantizer, got {quantizer!r}. Build one: "
            "qcore.get_quantizer(NAME).set_global('8a8w'), with a name from qcore.backends()."
        )
    acting = [
        algorithm
        for algorithm in chosen_algorithms(algorithms)
        if bias_correction or not isinstance(algorithm, BiasCorrection)
    ]
    data = CalibrationData.of(calibration_data)
    seconds: dict[str, float] = {}
    with showing_stages("quantize", _SHARES, progress):
        with stage("capture", seconds):
            graph = _captured(model, data.first, dynamic_shapes, "Calibration sample 0")
        with stage("prepare", seconds):
            if is_qat:
                for part in (graph, *(body for _, _, body in control_flow_bodies(graph))):
                    part.meta[TRAINING] = False
            prepared = PreparedModel.prepare(graph, quantizer, False, acting)
            quantizer.require_quantized(prepared.report())
        with stage("calibrate", seconds):
            graphs = prepared.graphs()
            finishing = [finish for a in acting if (finish := a.attach(graphs)) is not None]
            observed = observe_alone(prepared.model)
            inspection = calibrate(prepared.model, data, progress=progress)
            observed()
            for finish in finishing:
                finish()
            prepared.leave_unreached_in_float()
            prepared.warn(inspection.findings())
        with stage("convert", seconds):
            converted = prepared.convert()
            _refuse_pickling(converted)
        with stage("compare", seconds):
            if far := far_from_float(converted, inspection.kept):
                accepts = partial(_accepts, model, quantizer, data.first, dynamic_shapes)
                advice = remedies(quantizer, far, prepared.report(), accepts)
                prepared.warn([f"{far.told} {advice}".rstrip()])
    report = quantizer.require_quantized(prepared.report())
    write_decisions(converted, report)
    return QuantizedModel(converted, report, seconds)


def _accepts(model: Any, quantizer: Any, sample: Sample, dynamic_shapes: Any, scheme: str) -> bool:
    """Say whether a backend takes a model with one scheme for all of it."""
    try:
        other = quantizer.unset().set_global(scheme)
        explain(model, other, sample, dynamic_shapes=dynamic_shapes)
    except QcoreError:
        return False
    return True


def explain(
    model: Any, quantizer: Annotator, example_inputs: Any, *, dynamic_shapes: Any = None
) -> AnnotationReport:
    """Say what would be quantized, what not and why; nothing is calibrated or converted.

    Args:
        model: As ``quantize`` takes it; never changed.
        quantizer: What to quantize.
        example_inputs: One sample, to capture a module with.
        dynamic_shapes: As for ``torch.export.export``, where sizes vary; only for a module.

    Returns:
        A decision for every compute node.

    Raises:
        CaptureError: The model cannot be exported.
        SelectionError: A rule matches nothing.
        PartialQuantizationError: The backend cannot leave in float what would stay so.
        CalibrationError: The inputs do not fit.
    """
    graph = _captured(model, Sample.of(example_inputs), dynamic_shapes, "The example")
    return PreparedModel.prepare(graph, quantizer, False, ()).report()


def _captured(model: Any, sample: Sample, dynamic_shapes: Any, what: str) -> GraphModule:
    if isinstance(model, torch.nn.Module) and not isinstance(model, GraphModule):
        check_arguments(sample, model)
    graph = capture(model, sample, dynamic_shapes=dynamic_shapes)
    check_sample(sample, [n for n in graph.graph.nodes if n.op == "placeholder"], what)
    for part in (graph, *(body for _, _, body in control_flow_bodies(graph))):
        freeze(part)
    return graph
