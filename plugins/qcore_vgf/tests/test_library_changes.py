"""Each change that is made to ExecuTorch's VGF backend fits it, and is needed.

A test that fails here says that ExecuTorch does by itself what is changed: remove the change.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

import qcore
from qcore.errors import RuntimeUnavailableError
from qcore.testing.compat import LibraryChanges
from qcore_vgf import VgfCompileSpec
from qcore_vgf.compat.executorch import CONVERTER


class TestChanges(LibraryChanges):
    package = "qcore_vgf"


def test_a_folder_for_the_compilers_files_is_inside_the_pte(tmp_path: Path) -> None:
    spec = VgfCompileSpec().dump_intermediate_artifacts_to(str(tmp_path))
    quantizer = qcore.get_quantizer("vgf", compile_spec=spec).set_global("8a8w")
    x = torch.rand(1, 4)
    converted = qcore.quantize(torch.nn.Linear(4, 4), quantizer, [x]).model
    assert str(tmp_path).encode() in quantizer.lower(converted, (x,)).buffer


def test_the_converter_is_not_found_where_no_script_is_on_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("MODEL_CONVERTER_PATH", raising=False)
    (find,) = CONVERTER.originals()
    with pytest.raises(RuntimeError, match="converter"):
        find()


def test_a_version_without_a_runtime_for_vgf_is_refused_with_the_one_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.5.1")
    with pytest.raises(RuntimeUnavailableError) as refusal:
        qcore.get_quantizer("vgf")
    assert str(refusal.value) == (
        "vgf: the package of ExecuTorch 1.5.1 has no runtime for VGF programs, so none could be "
        "checked or run here. Install one that has: pip install 'executorch[vgf]>=1.4.1,<1.5'."
    )
