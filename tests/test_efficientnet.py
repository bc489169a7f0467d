"""The real model on real pictures: what the project promises for XNNPACK."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import qcore

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def imagenet() -> ModuleType:
    """The examples' module with the model and the pictures."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("imagenet", EXAMPLES / "imagenet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_int8_on_xnnpack_is_accurate_and_whole(imagenet: ModuleType) -> None:
    model = imagenet.float_model()
    samples, crops = imagenet.calibration_crops(), imagenet.evaluation_crops()
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w per-channel")
    result = qcore.quantize(model, quantizer, samples)
    assert not result.report.in_float

    program = quantizer.lower(result.model, (samples[0],))
    assert program.report.delegates == 1
    assert program.report.is_fully_delegated
    assert program.report.mended == ()
    # The check executes what there is; it changes no byte.
    assert quantizer.lower(result.model, (samples[0],), check=False).buffer == program.buffer

    expected = imagenet.logits(model, crops)
    executed = torch.cat(program.run_many([(crop,) for crop in crops]))
    assert imagenet.sqnr_db(expected, executed) >= 22
    assert imagenet.top1_agreement(expected, executed) >= 0.95
    # Integer rounding, amplified by fifty layers; docs/xnnpack.md has the reasons.
    assert imagenet.sqnr_db(imagenet.logits(result.model, crops), executed) >= 25


def test_the_demo_classifies_the_cat_and_says_only_how_far_it_is() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "classify_picture.py"), "--backend", "xnnpack"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    stages = done.stderr.splitlines()
    assert [line for line in stages if not re.fullmatch(r"[A-Z][\w ,]+: \d+\.\d s", line)] == []
    assert done.stdout.count("Egyptian cat") == 2
