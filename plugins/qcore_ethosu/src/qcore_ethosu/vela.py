"""Compiling TOSA graphs with Vela, and what Vela says about the result."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from qcore.errors import LoweringError, RuntimeUnavailableError
from qcore_ethosu.compat.executorch import VELA
from qcore_executorch.mending import UnmendableError
from qcore_tosa.artifacts import Compilation

__all__ = ["VelaFigures", "compile_with_vela", "require_vela"]

_MEMORIES: Final = ("sram", "dram", "on_chip_flash", "off_chip_flash")
_KIB: Final = 1024
# What its errors about its own command line hold.
_ABOUT_OPTIONS: Final = ("usage: vela", "CLI option", "configuration file")


def _table(values: Mapping[str, int]) -> dict[str, int]:
    return dict(values)


@attrs.frozen
class VelaFigures:
    """What Vela estimates for one compiled graph.

    Attributes:
        accelerator: The accelerator configuration, as ``"Ethos_U55_128"``.
        system_config: The system configuration of Vela's configuration file.
        memory_mode: The memory mode of Vela's configuration file.
        core_clock_hz: The clock that cycles are counted in.
        npu_operators: Operators on the NPU, after fusing.
        cpu_operators: Operators that Vela leaves to the CPU.
        macs: Multiply-accumulate operations of one inference.
        npu_cycles: Cycles the NPU computes.
        total_cycles: Cycles of one inference, with waiting for memory.
        memory_bytes: Peak use of each kind of memory in bytes; those that are not used are absent.
        weight_bytes: Weights before compression, in bytes.
        encoded_weight_bytes: Weights as the NPU reads them, in bytes.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    core_clock_hz: float
    npu_operators: int
    cpu_operators: int
    macs: int
    npu_cycles: int
    total_cycles: int
    memory_bytes: Mapping[str, int] = attrs.field(converter=_table)
    weight_bytes: int
    encoded_weight_bytes: int

    @property
    def sram_bytes(self) -> int:
        """Peak use of SRAM in bytes."""
        return self.memory_bytes.get("sram", 0)

    @property
    def flash_bytes(self) -> int:
        """Peak use of flash, on the chip and off it, in bytes."""
        return sum(self.memory_bytes.get(f"{place}_chip_flash", 0) for place in ("on", "off"))


class _Vela:
    """Stands where ExecuTorch looks for Vela, runs it in a child process, and keeps its figures.

    Vela prints to the process's own standard output and its compiler is native code.
    """

    def __init__(self) -> None:
        self.figures: VelaFigures | None = None

    def main(self, arguments: Sequence[str]) -> int:
        """Run Vela.

        Args:
            arguments: Its command line.

        Returns:
            0.

        Raises:
            LoweringError: Vela refuses the graph, or its process died.
        """
        with tempfile.TemporaryDirectory(prefix="qcore-vela-") as folder:
            operators = Path(folder) / "operators.json"
            # As a file: by its name, what its package imports would be imported first.
            child = Path(__file__).with_name("_vela_child.py")
            command = [sys.executable, "-P", str(child), str(operators)]
            done = subprocess.run(
                [*command, *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise _failure(done)
            counts = json.loads(operators.read_text(encoding="utf-8"))
        self.figures = _read_summary(_output_folder(arguments), counts)
        return 0


def _output_folder(arguments: Sequence[str]) -> Path:
    flag = "--output-dir="
    return Path(next(item[len(flag) :] for item in arguments if item.startswith(flag)))


def _failure(done: subprocess.CompletedProcess[str]) -> LoweringError:
    lines = (done.stderr or done.stdout).strip().splitlines()
    said = "".join(f"\n  | {line}" for line in lines)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return LoweringError(f"Vela's process died of {name}; this process is unharmed.{said}")
    if any(word in line for line in lines for word in _ABOUT_OPTIONS):
        errors = "".join(f"\n  | {line}" for line in lines if "error" in line.lower())
        return UnmendableError(
            "Vela refuses its options: mend system_config, memory_mode, config_ini or extra_flags. "
            f"`vela --help` and `vela --list-configs FILE` say what there is. Vela says:{errors}"
        )
    return LoweringError(
        "Vela refuses the graph. Look at it with the TOSA file that ExecuTorch writes to "
        f"compile_spec.dump_intermediate_artifacts_to(folder). Vela says:{said}"
    )


def _read_summary(folder: Path, counts: Mapping[str, int]) -> VelaFigures:
    # Vela names the file after the network and the system configuration.
    summary = max(folder.glob("*_summary_*.csv"), key=lambda path: path.stat().st_mtime_ns)
    with summary.open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    used = {name: round(float(row[f"{name}_memory_used"]) * _KIB) for name in _MEMORIES}
    return VelaFigures(
        accelerator=row["accelerator_configuration"],
        system_config=row["system_config"],
        memory_mode=row["memory_mode"],
        core_clock_hz=float(row["core_clock"]),
        macs=int(float(row["nn_macs"])),
        npu_cycles=int(float(row["cycles_npu"])),
        total_cycles=int(float(row["cycles_total"])),
        memory_bytes={name: size for name, size in used.items() if size},
        weight_bytes=int(float(row["total_original_weights"])),
        encoded_weight_bytes=int(float(row["total_npu_encoded_weights"])),
        **counts,
    )


def compile_with_vela(
    compile_: Callable[..., bytes],
    tosa: bytes,
    arguments: list[str],
    verbose: bool = False,
    **options: Any,
) -> Compilation:
    """Compile a TOSA graph, in the place of ExecuTorch's ``vela_compile``.

    Args:
        compile_: The original.
        tosa: The TOSA graph.
        arguments: Vela's command line.
        verbose: Not used: Vela's output is kept for messages only.
        **options: What else ExecuTorch passes, such as the folder where the user wants the files.

    Returns:
        The command stream as ExecuTorch packs it, with :class:`VelaFigures`.
    """
    del verbose
    vela = _Vela()
    with VELA.applied(vela):
        binary = compile_(tosa, arguments, **options)
    assert vela.figures is not None
    return Compilation(tosa, binary, vela.figures)


def require_vela() -> None:
    """Refuse to lower where Vela is missing.

    Raises:
        RuntimeUnavailableError: It is not installed.
    """
    # find_spec of a submodule imports the package above it, which may be missing itself.
    if importlib.util.find_spec("ethosu") is None:
        raise RuntimeUnavailableError(
            "Lowering for Ethos-U needs Arm's compiler Vela, the package ethos-u-vela, which is "
            'not installed. Install it: pip install "executorch[ethos-u]".'
        )
