"""Imported by a runner's child in tests: refuses to load where ExecuTorch's compiler is."""

import sys

if "executorch.exir" in sys.modules:
    raise ImportError("the runtime came with ExecuTorch's compiler")
