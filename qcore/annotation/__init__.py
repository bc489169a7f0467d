"""Toolkit for backend authors: patterns, rules that place qspecs, and the walk over a graph."""

from qcore.annotation.annotate import annotate_graph
from qcore.annotation.patterns import (
    CLAMPS,
    INTEGERS_ONLY,
    REPLACE_OR_MOVE,
    AnnotationRule,
    Check,
    OperatorMatch,
    OperatorPattern,
    Rejection,
    SupportTable,
    without_float32,
)
from qcore.annotation.rules import (
    ConcatRule,
    ElementwiseRule,
    GemmRule,
    PassThroughRule,
    PoolRule,
)
from qcore.annotation.transforms import (
    clamps_to_hardtanh,
    explicit_pool_strides,
    scalars_to_attributes,
)

__all__ = [
    "CLAMPS",
    "INTEGERS_ONLY",
    "REPLACE_OR_MOVE",
    "AnnotationRule",
    "Check",
    "ConcatRule",
    "ElementwiseRule",
    "GemmRule",
    "OperatorMatch",
    "OperatorPattern",
    "PassThroughRule",
    "PoolRule",
    "Rejection",
    "SupportTable",
    "annotate_graph",
    "clamps_to_hardtanh",
    "explicit_pool_strides",
    "scalars_to_attributes",
    "without_float32",
]
