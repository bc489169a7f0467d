"""The process that compiles with Vela; started by ``qcore_ethosu.vela``, never imported.

Vela prints its figures and writes all but the number of operators to a file; here that number
is written to a file, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__: list[str] = []


def main(operators: str, arguments: list[str]) -> int:
    """Run Vela.

    Args:
        operators: The file to write the numbers of operators to, as JSON.
        arguments: Vela's command line.

    Returns:
        The exit status.
    """
    from ethosu.vela import stats_writer, vela

    report_metrics = stats_writer.print_regor_performance_metrics

    def keep(arch: Any, report: Any, *args: Any, **kwargs: Any) -> None:
        counts = {"npu_operators": report.npuOps, "cpu_operators": report.cpuOps}
        Path(operators).write_text(json.dumps(counts), encoding="utf-8")
        report_metrics(arch, report, *args, **kwargs)

    stats_writer.print_regor_performance_metrics = keep
    try:
        return int(vela.main(arguments) or 0)
    except Exception as error:
        print(getattr(error, "data", error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
