"""Each change that is made to ExecuTorch's Ethos-U backend fits it, and is needed.

A test that fails here says that ExecuTorch does by itself what is changed: remove the change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qcore
from qcore.testing.compat import LibraryChanges
from qcore_ethosu import EthosUCompileSpec
from qcore_ethosu.compat.executorch import VELA


class TestChanges(LibraryChanges):
    package = "qcore_ethosu"


def test_a_folder_for_the_compilers_files_is_inside_the_pte(tmp_path: Path) -> None:
    spec = EthosUCompileSpec("ethos-u55-128").dump_intermediate_artifacts_to(str(tmp_path))
    quantizer = qcore.get_quantizer("ethosu", compile_spec=spec).set_global("8a8w")
    x = torch.rand(1, 4)
    converted = qcore.quantize(torch.nn.Linear(4, 4), quantizer, [x]).model
    assert str(tmp_path).encode() in quantizer.lower(converted, (x,)).buffer


def test_vela_prints_to_the_standard_output_of_its_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    (vela,) = VELA.originals()
    with pytest.raises(SystemExit):
        vela.main(["--version"])
    assert capfd.readouterr().out
