"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

from qcore_ethosu.backend import EthosUBackend
from qcore_tosa import TosaQuantizer

__all__ = ["EthosUQuantizer"]


class EthosUQuantizer(TosaQuantizer):
    """``qcore.get_quantizer("ethosu", target=...)`` as a class.

    Args:
        compile_spec: ExecuTorch's ``EthosUCompileSpec``.

    Raises:
        QcoreError: ``compile_spec`` is none.
    """

    backend_type = EthosUBackend
