"""An extension that takes schemes away from every backend, whoever wrote it."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence

from attrs import define, field

import qcore
from qcore.errors import UnsupportedSchemeError

__all__ = ["VARIABLE", "Veto"]

VARIABLE = "QCORE_VETO"


def _vetoed() -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))))


@define
class Veto:
    """Drops the schemes whose names the environment variable lists, such as ``8da8w,4w``.

    Attributes:
        names: The names; read when a quantizer is built.
    """

    names: tuple[str, ...] = field(factory=_vetoed)

    @qcore.hookimpl(wrapper=True)
    def supported_schemes(
        self,
    ) -> Generator[None, Sequence[qcore.QuantizationScheme], Sequence[qcore.QuantizationScheme]]:
        """Return what the backend declares, without the vetoed schemes."""
        declared = yield
        allowed = tuple(scheme for scheme in declared if scheme.name not in self.names)
        if declared and not allowed:
            raise UnsupportedSchemeError(
                f"{VARIABLE}={','.join(self.names)} vetoes every scheme of this backend: "
                f"{', '.join(dict.fromkeys(scheme.name for scheme in declared))}. "
                "Change the variable, or uninstall qcore-example-extensions."
            )
        return allowed
