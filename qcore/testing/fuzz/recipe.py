"""Models as data: what can be built, run, made smaller and printed as code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve, field, frozen

__all__ = ["Recipe", "Step", "is_image"]

_HEADER = """import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed({seed})


class Model(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, {inputs}):
{body}
        return {output}


model = Model().eval(){layout}
samples = [{samples}]
dynamic_shapes = {dynamic}
"""


@frozen
class Step:
    """One statement of a model's ``forward``.

    Attributes:
        name: The variable that it sets.
        code: Its right side, with ``{0}``, ``{1}`` for the operands.
        operands: Names of the variables that it reads.
        layers: Constructors of the layers that it calls, by attribute.
    """

    name: str
    code: str
    operands: tuple[str, ...] = ()
    layers: dict[str, str] = field(factory=dict)

    @property
    def statement(self) -> str:
        """The statement as code."""
        return f"{self.name} = {self.code.format(*self.operands)}"


@frozen
class Recipe:
    """A model with its samples.

    Attributes:
        seed: Seeds the weights and the samples.
        inputs: Code that draws a sample of each input, by name.
        steps: The statements.
        outputs: Names of the variables that are returned.
        output: The structure that is returned, with ``{0}``, ``{1}`` for the outputs.
        by_keyword: Whether samples are mappings.
        channels_last: Whether model and samples are in channels_last.
        dynamic: Whether the first dimension of every input varies.
    """

    seed: int
    inputs: dict[str, str]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    output: str = "{0}"
    by_keyword: bool = False
    channels_last: bool = False
    dynamic: bool = False

    @property
    def code(self) -> str:
        """The model and its samples as a program, which sets ``model`` and ``samples``."""
        layers = {name: code for step in self.steps for name, code in step.layers.items()}
        layout = ".to(memory_format=torch.channels_last)" if self.channels_last else ""
        values = {
            name: code + (layout if self.channels_last and is_image(code) else "")
            for name, code in self.inputs.items()
        }
        if self.by_keyword:
            sample = "{" + ", ".join(f"{n!r}: {c}" for n, c in values.items()) + "}"
        else:
            sample = "(" + ", ".join(values.values()) + ",)"
        sizes = {name: {0: "BATCH"} for name in self.inputs}
        dynamic = repr(sizes).replace("'BATCH'", "torch.export.Dim('batch', min=1, max=8)")
        return _HEADER.format(
            seed=self.seed,
            layers=_lines([f"self.{name} = {code}" for name, code in layers.items()]),
            inputs=", ".join(self.inputs),
            body=_lines([step.statement for step in self.steps]),
            output=self.output.format(*self.outputs),
            layout=layout,
            samples=", ".join([sample] * 3),
            dynamic=dynamic if self.dynamic else None,
        )

    def build(self) -> dict[str, Any]:
        """Execute the code.

        Returns:
            Its variables: ``model``, ``samples`` and ``dynamic_shapes``.
        """
        scope: dict[str, Any] = {"__name__": "fuzzed"}
        exec(self.code, scope)
        return scope

    def smaller(self) -> Iterator[Recipe]:
        """Yield models that lack a part of this one, the smallest first."""
        plain = evolve(self, output="{0}", by_keyword=False, channels_last=False, dynamic=False)
        for index, step in enumerate(self.steps):
            yield evolve(plain, steps=self.steps[: index + 1], outputs=(step.name,)).trimmed()
        for name in self.outputs:
            yield evolve(self, outputs=(name,), output="{0}").trimmed()
        for index, step in enumerate(self.steps):
            for operand in step.operands:
                yield self.without(index, operand).trimmed()
        yield evolve(self, by_keyword=False)
        yield evolve(self, channels_last=False)
        yield evolve(self, dynamic=False)

    def without(self, index: int, operand: str) -> Recipe:
        """Return the model in which one of a statement's operands stands for its result."""
        gone = self.steps[index].name

        def kept(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(operand if name == gone else name for name in names)

        steps = [
            evolve(step, operands=kept(step.operands))
            for position, step in enumerate(self.steps)
            if position != index
        ]
        return evolve(self, steps=tuple(steps), outputs=kept(self.outputs))

    def trimmed(self) -> Recipe:
        """Return the model without what no output reads; one input is kept."""
        needed, steps = set(self.outputs), []
        for step in reversed(self.steps):
            # What is computed in place changes its operand.
            if step.name in needed or (step.code.endswith("_()") and needed & {*step.operands}):
                needed.update({step.name, *step.operands})
                steps.append(step)
        inputs = {name: code for name, code in self.inputs.items() if name in needed}
        first = dict([next(iter(self.inputs.items()))])
        return evolve(self, steps=tuple(reversed(steps)), inputs=inputs or first)


def is_image(code: str) -> bool:
    """Say whether code draws a sample with four dimensions."""
    return code.startswith("torch.randn(") and code.count(",") == 3


def _lines(statements: list[str]) -> str:
    return "\n".join(f"        {statement}" for statement in statements or ["pass"])
