"""What an algorithm is: it changes weights or biases at one of two moments of the flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch.fx import GraphModule

__all__ = ["Algorithm"]


class Algorithm:
    """Changes weights before observing, or weights and biases from what the samples show.

    Subclass it, give it a name and override one method or both. One object serves any number of
    models: what belongs to one of them lives in the function that :meth:`attach` returns. Tensors
    of the graphs may be the user's own: replace them, never write to them.

    Attributes:
        name: Its name, as in ``qcore.quantize(..., algorithms=("bias_correction",))``.
    """

    name: ClassVar[str]

    def before_observing(self, model: GraphModule) -> None:
        """Change the weights of a graph that is captured, transformed and annotated.

        Args:
            model: The model or, in a call of its own, a body of its control flow. Nodes stay as
                they are.
        """

    def attach(self, graphs: Sequence[GraphModule]) -> Callable[[], object] | None:
        """Make ready for the samples, which run next: insert recorders, for example.

        Args:
            graphs: The prepared graph, with observers, and the bodies of its control flow.

        Returns:
            What to call after the samples: it changes weights and biases, and takes out of the
            graphs what was inserted. ``None`` for nothing.
        """
        del graphs
        return None
