"""Toolkit for backend authors: patterns, rules that place qspecs, and the walk over a graph.

:mod:`qcore.annotation.checks` has reasons against quantizing a match, and
:mod:`qcore.annotation.forms` operators written as others.
"""

from qcore.annotation.alternatives import MOVE_OUT
from qcore.annotation.annotate import annotate_graph, decide
from qcore.annotation.in_place import make_functional
from qcore.annotation.layers import LAYERS, Layer, convolution_groups, layer_of
from qcore.annotation.patterns import (
    BATCH_NORMS,
    CLAMPS,
    INTEGERS_ONLY,
    AnnotationRule,
    Check,
    OperatorMatch,
    OperatorPattern,
    Rejection,
    SupportTable,
    without_float32,
)
from qcore.annotation.ranges import (
    ConcatRule,
    PassThroughRule,
    SameRangeInputsRule,
    SameRangeRule,
)
from qcore.annotation.rewriting import rewrite_by
from qcore.annotation.rules import (
    ElementwiseRule,
    GemmRule,
    annotation_of,
    is_quantized_value,
    product_scale_bias,
    sharing_with,
    write_annotation,
    write_match,
)
from qcore.annotation.transforms import scalars_to_attributes

__all__ = [
    "BATCH_NORMS",
    "CLAMPS",
    "INTEGERS_ONLY",
    "LAYERS",
    "MOVE_OUT",
    "AnnotationRule",
    "Check",
    "ConcatRule",
    "ElementwiseRule",
    "GemmRule",
    "Layer",
    "OperatorMatch",
    "OperatorPattern",
    "PassThroughRule",
    "Rejection",
    "SameRangeInputsRule",
    "SameRangeRule",
    "SupportTable",
    "annotate_graph",
    "annotation_of",
    "convolution_groups",
    "decide",
    "is_quantized_value",
    "layer_of",
    "make_functional",
    "product_scale_bias",
    "rewrite_by",
    "scalars_to_attributes",
    "sharing_with",
    "without_float32",
    "write_annotation",
    "write_match",
]
