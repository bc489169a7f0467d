"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from qcore.compat.torchao import FakeQuantizeBase, made_by
from qcore.plan import RuleKind
from qcore.quantizer import Quantizer
from qcore.schemes import QuantizationConfig
from qcore_tosa.backend import TosaBackend
from qcore_tosa.compat.executorch import CONFIGURATIONS

__all__ = ["TosaQuantizer"]


class TosaQuantizer(Quantizer):
    """Quantizes for any of ExecuTorch's Arm targets.

    Args:
        compile_spec: An Arm compile spec; a ``TosaSpecification`` or its string stand for TOSA
            itself, which the reference model executes.

    Raises:
        QcoreError: ``compile_spec`` is none of these.
    """

    #: The backend; a device's quantizer names its own.
    backend_type: ClassVar[type[TosaBackend]] = TosaBackend

    def __init__(self, compile_spec: Any) -> None:
        super().__init__(self.backend_type(compile_spec))

    @property
    def compile_spec(self) -> Any:
        """The compile spec of the target."""
        return self.backend.compile_spec  # type: ignore[attr-defined]

    @property
    def global_config(self) -> QuantizationConfig | None:
        """The configuration that ``set_global`` was given."""
        rule = self._selectors.by_kind[RuleKind.GLOBAL].get("")
        return None if rule is None else rule.config

    def _config(self, wanted: Any) -> Any:
        return super()._config(_from_executorch(wanted))

    @property
    def tosa_spec(self) -> Any:
        """The TOSA specification of the target."""
        return self.compile_spec.tosa_spec


def _from_executorch(config: Any) -> Any:
    """Turn a configuration of ExecuTorch's Arm quantizer into torchao's, which is ours.

    Where a bias is quantized, its qspec follows from the others.
    """
    CONFIGURATIONS.checked()
    if isinstance(config, QuantizationConfig) or not hasattr(config, "get_weight_qspec"):
        return config
    specs = (config.input_activation, config.output_activation, config.weight)
    makers = [spec.observer_or_fake_quant_ctr for spec in specs if spec is not None]
    is_qat = any(_makes_fake_quantize(maker) for maker in makers)
    return QuantizationConfig(*specs, None, is_qat)


def _makes_fake_quantize(maker: Any) -> bool:
    made, _ = made_by(maker)
    return inspect.isclass(made) and issubclass(made, FakeQuantizeBase)
