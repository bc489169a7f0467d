"""What qcore asks of every backend, asked of this one."""

from qcore.testing import BackendConformance


class TestConformance(BackendConformance):
    backend = "integer"
