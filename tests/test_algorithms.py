"""Algorithms act before observing and after the samples; bias correction is one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import qcore
from qcore.algorithms import Algorithm, BiasCorrection, chosen_algorithms
from qcore.quantizer import Quantizer

Build = Callable[[], Quantizer]

SAMPLES = [torch.rand(4, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]


class Halve(Algorithm):
    """Halves every weight before ranges are observed."""

    name: ClassVar[str] = "halve"

    def before_observing(self, model: GraphModule) -> None:
        for path, value in list(model.named_parameters()):
            owner, _, name = path.rpartition(".")
            half = nn.Parameter(value.detach() / 2, requires_grad=False)
            setattr(model.get_submodule(owner), name, half)


class Note(Algorithm):
    """Writes down what happens when."""

    name: ClassVar[str] = "note"

    def __init__(self) -> None:
        self.events: list[str] = []

    def before_observing(self, model: GraphModule) -> None:
        observed = any("activation_post_process" in name for name, _ in model.named_modules())
        self.events.append(f"before, observed: {observed}")

    def attach(self, graphs: Sequence[GraphModule]) -> Callable[[], object]:
        hook = graphs[0].register_forward_pre_hook(lambda *_: self.events.append("sample"))

        def finish() -> None:
            hook.remove()
            self.events.append("after")

        return finish


def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4))


def test_both_moments_lie_around_the_samples(toy: Build) -> None:
    note = Note()
    qcore.quantize(layer(), toy().set_global("8a8w"), SAMPLES, algorithms=[note])
    assert note.events == ["before, observed: False", *["sample"] * 4, "after"]


def test_weights_changed_before_observing_have_ranges_of_their_own(toy: Build) -> None:
    model = layer()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = qcore.quantize(model, toy().set_global("8a8w"), SAMPLES, algorithms=[Halve()])
    error = (result.model(SAMPLES[0]) - model(SAMPLES[0]) / 2).abs().max()
    assert error < 0.02
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_one_object_serves_several_models(toy: Build) -> None:
    outputs = [
        qcore.quantize(
            layer(), toy().set_global("8a8w"), SAMPLES, algorithms=[BiasCorrection()]
        ).model(SAMPLES[0])
        for _ in range(2)
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("options", [{"bias_correction": False}, {"algorithms": ()}])
def test_bias_correction_is_the_default_and_can_be_left_out(
    toy: Build, options: dict[str, Any]
) -> None:
    coarse = qcore.get_symmetric_quantization_config(weight_qmin=-7, weight_qmax=7)

    def biases(**chosen: Any) -> list[torch.Tensor]:
        result = qcore.quantize(layer(), toy().set_global(coarse), SAMPLES, **chosen)
        return [value for name, value in result.model.named_buffers() if "bias" in name]

    assert biases()
    assert not biases(**options)


def test_names_and_objects_may_be_mixed_and_each_acts_once() -> None:
    note = Note()
    assert chosen_algorithms(["bias_correction", note, note, "bias_correction"]) == (
        BiasCorrection(),
        note,
    )


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("bias_corection", "is no algorithm. Did you mean 'bias_correction'"),
        (Note, "is no algorithm. There are: bias_correction. One of your own"),
    ],
)
def test_an_unknown_algorithm_is_refused_before_the_model_is_captured(
    toy: Build, wanted: Any, says: str
) -> None:
    with pytest.raises(qcore.QcoreError, match=says):
        qcore.quantize(layer(), toy().set_global("8a8w"), SAMPLES, algorithms=[wanted])
