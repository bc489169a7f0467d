"""What the commands answer with ``--json``, where it is no report; nothing here imports torch."""

from __future__ import annotations

import attrs

from qcore.report import AnnotationReport, LoweringReport, SourceReport

__all__ = ["Listed", "Quantized", "Scaffolded", "Schemes", "Verified"]


@attrs.frozen
class Quantized:
    """The answer of ``qcore quantize``.

    Attributes:
        program: The file that was written.
        bytes: Its size.
        report: What was quantized.
        lowering: What became of it in the program; null where the file is a quantized model.
    """

    program: str
    bytes: int
    report: AnnotationReport | SourceReport
    lowering: LoweringReport | None


@attrs.frozen
class Verified:
    """The answer of ``qcore verify``: a program's outputs against those of the float model.

    Attributes:
        sqnr_db: Signal to quantization noise in decibels.
        cosine: Cosine of the angle between both.
        max_abs_error: The largest difference of one element.
        top1: Share of rows with the same largest element; null where the outputs are no logits.
        samples: How many samples were compared.
        min_sqnr_db: What was asked for.
        ok: Whether it is as near as that.
    """

    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1: float | None
    samples: int
    min_sqnr_db: float
    ok: bool


@attrs.frozen
class Schemes:
    """The answer of ``qcore schemes``.

    Attributes:
        backend: The backend.
        pt2e: The schemes of ``qcore.quantize``.
        quantize_: Those of ``qcore.quantize_``.
    """

    backend: str
    pt2e: tuple[str, ...]
    quantize_: tuple[str, ...]


@attrs.frozen
class Listed:
    """An item of the answer of ``qcore backends``.

    Attributes:
        name: The backend.
        origins: Who provides it; more than one is a conflict.
    """

    name: str
    origins: tuple[str, ...]


@attrs.frozen
class Scaffolded:
    """The answer of ``qcore new-backend``.

    Attributes:
        folder: Where it was written.
    """

    folder: str
