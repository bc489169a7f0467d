"""What qcore asks of every backend, asked of this one."""

from qcore.testing import BackendConformance

INT32 = "ExecuTorch's Arm passes turn int64 into int32, what a model returns included"


class TestConformance(BackendConformance):
    backend = "ethosu"
    expected_failures = {"transform_keeps_the_outputs[integer_tensors]": INT32}
