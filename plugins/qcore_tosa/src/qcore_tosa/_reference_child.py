"""The process that executes TOSA graphs; started by ``qcore_tosa.reference``, never imported.

Tensors travel in files of the working folder, as numpy archives.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qcore.lowering.serving import Operations, Refusal, serve

__all__: list[str] = []


def _start(folder: Path, config: dict[str, Any]) -> Operations:
    del config
    try:
        import numpy as np
        import tosa_reference_model as model
    except ImportError as error:
        raise Refusal("no_model", f"{type(error).__name__}: {error}") from error

    def run(request: dict[str, Any]) -> dict[str, Any]:
        graph = (folder / request["graph"]).read_bytes()
        with np.load(folder / "inputs.npz") as archive:
            inputs = [archive[str(index)] for index in range(len(archive))]
        try:
            outputs, status = model.run(graph, inputs, verbosity="NONE")
        except Exception as error:
            raise Refusal("refused", f"{type(error).__name__}: {error}") from error
        if status != model.GraphStatus.TOSA_VALID:
            raise Refusal("refused", f"the graph or its inputs are {status.name}")
        np.savez(folder / "outputs.npz", **{str(i): output for i, output in enumerate(outputs)})
        return {}

    return {"run": run}


if __name__ == "__main__":
    serve(sys.argv[1:], _start)
