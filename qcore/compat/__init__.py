"""Every change to a foreign library: as data, with its reason, refused where it no longer fits.

The core's are here, a file for each library. Distributions that change others have a ``compat`` of
their own, made of the same :class:`Change`, :class:`Requirement` and
:class:`Wording`.
"""

from __future__ import annotations

from qcore.compat.patching import Change, Requirement, Wording, requirements
from qcore.sharing import shared

__all__ = ["Change", "Requirement", "Wording", "requirements", "shared"]
