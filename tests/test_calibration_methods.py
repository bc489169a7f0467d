"""The core applies the calibration method, so that every backend honours it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from torch import nn

import qcore
from qcore.calibration import CalibrationMethod, HistogramObserver
from qcore.compat.torchao import MinMaxObserver, PlaceholderObserver
from qcore.quantizer import Quantizer

Build = Callable[[], Quantizer]


class MyObserver(MinMaxObserver):  # type: ignore[misc]
    """An observer of a user's own."""


@frozen
class Mine:
    """A method of a user's own."""

    name: ClassVar[str] = "mine"

    def observer(self, number_format: Any) -> Any:
        return MyObserver


def observers(quantizer: Quantizer) -> set[type]:
    """Return the classes that would observe the activations of a linear layer."""
    graph = torch.export.export(nn.Sequential(nn.Linear(8, 4)), (torch.rand(2, 8),)).module()
    quantizer.annotate(quantizer.transform_for_annotation(graph))
    linear = next(node for node in graph.graph.nodes if "linear" in str(node.target))
    annotation = linear.meta["quantization_annotation"]
    specs = [annotation.input_qspec_map[linear.args[0]], annotation.output_qspec]
    return {type(s.observer_or_fake_quant_ctr(dtype=s.dtype)) for s in specs if s is not None}


def by_name(name: str, **options: Any) -> Callable[[], Quantizer]:
    def build() -> Quantizer:
        return qcore.get_quantizer(name, **options)

    return build


BACKENDS: dict[str, Callable[[], Quantizer]] = {
    "xnnpack": by_name("xnnpack"),
    "tosa": by_name("tosa"),
    "ethosu": by_name("ethosu", target="ethos-u55-128"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("method", "expected"),
    [("histogram", HistogramObserver), ("min_max", MinMaxObserver), (Mine(), MyObserver)],
)
def test_every_backend_honours_the_method(backend: str, method: Any, expected: type) -> None:
    quantizer = BACKENDS[backend]().set_global("8a8w").set_calibration(method)
    assert observers(quantizer) == {expected}


def test_configurations_that_a_plugin_builds_are_honoured_alike() -> None:
    ethosu = pytest.importorskip("qcore_ethosu")
    for config in (
        ethosu.get_symmetric_quantization_config(),
        ethosu.get_symmetric_quantization_config(is_per_channel=False),
    ):
        quantizer = BACKENDS["ethosu"]().set_calibration("min_max").set_global(config)
        assert observers(quantizer) == {MinMaxObserver}


def test_a_users_own_observer_is_never_replaced(toy: Build) -> None:
    config = qcore.get_symmetric_quantization_config(act_observer=MyObserver)
    assert observers(toy().set_global(config).set_calibration("histogram")) == {MyObserver}
    same = qcore.get_symmetric_quantization_config(act_observer=HistogramObserver)
    assert observers(toy().set_global(same).set_calibration("min_max")) == {HistogramObserver}


def test_dynamic_ranges_are_no_matter_of_calibration(toy: Build) -> None:
    assert observers(toy().set_global("8da8w").set_calibration("min_max")) == {PlaceholderObserver}


def test_the_order_of_rules_and_method_does_not_matter(toy: Build) -> None:
    assert observers(toy().set_calibration("min_max").set_global("8a8w")) == {MinMaxObserver}


def test_min_max_covers_the_largest_sample_and_the_histogram_clips_it(toy: Build) -> None:
    samples = [torch.rand(64, 8) for _ in range(4)]
    samples[0][0, 0] = 100.0
    scales = {}
    for method in ("histogram", "min_max"):
        quantizer = toy().set_global("8a8w").set_calibration(method)
        model = qcore.quantize(nn.Sequential(nn.Linear(8, 4)), quantizer, samples).model
        first = next(n for n in model.graph.nodes if ".quantize_per_tensor" in str(n.target))
        scales[method] = first.args[1]
    assert scales["min_max"] == pytest.approx(100 / 255, rel=1e-4)
    assert scales["histogram"] < scales["min_max"]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("minmax", "'minmax' is no calibration method. Did you mean 'min_max'"),
        ("entropy", "There are: histogram, min_max. One of your own"),
        (MinMaxObserver, "is no calibration method"),
    ],
)
def test_an_unknown_method_is_refused_with_what_there_is(
    toy: Build, method: Any, says: str
) -> None:
    with pytest.raises(qcore.QcoreError, match=says):
        toy().set_calibration(method)


def test_a_method_is_what_has_a_name_and_builds_observers() -> None:
    assert isinstance(Mine(), CalibrationMethod)
