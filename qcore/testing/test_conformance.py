"""What ``pytest --pyargs qcore.testing --qcore-backend NAME`` runs."""

from qcore.testing import BackendConformance


class TestConformance(BackendConformance):
    """The checks, for the backend that the command line names."""
