"""Operators that a backend lacks, written as others that it has.

A form computes an operator by others. :data:`FORMS` holds those that any backend can use; one adds
its own with ``{**FORMS, operator: form}`` and hands them to :func:`in_quantizable_forms`, which
uses those whose result stands in the backend's support table.
"""

from __future__ import annotations

from qcore.annotation.forms.applying import Form, Written, always, in_quantizable_forms
from qcore.annotation.forms.functions import FUNCTION_FORMS
from qcore.annotation.forms.layers import LAYER_FORMS, padding_of_sides

__all__ = ["FORMS", "Form", "Written", "always", "in_quantizable_forms", "padding_of_sides"]

#: Operator -> its form.
FORMS: dict[object, Form] = {**FUNCTION_FORMS, **LAYER_FORMS}
