"""What importing and listing costs, and how quiet it is."""

from __future__ import annotations

import subprocess
import sys


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_listing_backends_imports_no_torch_and_no_plugin() -> None:
    code = (
        "import sys, qcore; qcore.backends();"
        "print([m for m in sys.modules if m == 'torch' or m.startswith(('executorch', 'qcore_'))])"
    )
    assert _python(code).stdout.strip() == "[]"


def test_listing_backends_in_a_fresh_interpreter_takes_less_than_a_third_of_a_second() -> None:
    code = "import time; t = time.process_time(); import qcore; qcore.backends();"
    code += "print(time.process_time() - t)"
    assert min(float(_python(code).stdout) for _ in range(3)) < 0.3


def test_building_a_configuration_imports_no_executorch() -> None:
    code = (
        "import sys, qcore; qcore.get_symmetric_quantization_config();"
        "print(any(m.startswith('executorch') for m in sys.modules))"
    )
    assert _python(code).stdout.strip() == "False"


def test_importing_every_public_name_writes_nothing() -> None:
    done = _python("import qcore; [getattr(qcore, name) for name in qcore.__all__]")
    assert (done.stdout, done.stderr) == ("", "")


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import qcore; qcore.quantise"], capture_output=True, text=True
    )
    assert "module 'qcore' has no attribute 'quantise'" in done.stderr
