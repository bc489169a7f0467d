"""Take random models all the way on a backend, and put what became of them into a page.

What became of each seed is kept in ``build/fuzz``, so that a run which was cut off goes on, and
more seeds add to those of before; a seed that now draws another model is taken anew. ``--flow
executorch`` takes ExecuTorch's XNNPACK quantizer and its plain lowering instead, and runs the
program in the process that asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from attrs import asdict
from tqdm import tqdm

from qcore.testing.fuzz import Kind, Outcome
from qcore.testing.fuzz.outcome import FLOWS, difference, recipe_of
from qcore.testing.fuzz.workers import Worker
from qcore.testing.support import with_parts, write_pages

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "fuzz.md", ROOT / "README.md"
FOUND = ROOT / "build" / "fuzz"
# Heading of a column -> what is counted in it.
COLUMNS: Final = {kind.value: kind for kind in Kind if kind is not Kind.INVALID}
ACCEPTED: Final = {
    "right": {Kind.RIGHT},
    "stop in lowering": {Kind.STOPPED},
    "do not run": {Kind.LATE, Kind.SLOW},
    "kill the process": {Kind.CRASH},
    "wrong in silence": {Kind.WRONG},
    "bare exception": {Kind.BARE},
}
# Who takes models to XNNPACK -> its flow.
XNNPACK: Final = {"qcore": "pt2e", "ExecuTorch's quantizer and lowering": "executorch"}


def executorch(seed: int, backend: str, model: Any, samples: Any, dynamic_shapes: Any) -> Outcome:
    """Take a model all the way with ExecuTorch alone."""
    import executorch.kernels.quantized  # noqa: F401 (registers kernels)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def exported(model: Any) -> Any:
        keywords = samples[0] if isinstance(samples[0], dict) else {}
        inputs = () if keywords else samples[0]
        return torch.export.export(model, inputs, keywords, dynamic_shapes=dynamic_shapes)

    quantizer = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True)
    )
    kind = Kind.REFUSED
    try:
        prepared = prepare_pt2e(exported(model).module(), quantizer)
        for sample in samples:
            prepared(**sample) if isinstance(sample, dict) else prepared(*sample)
        converted = convert_pt2e(prepared)
        kind = Kind.STOPPED
        program = exported(converted)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        buffer = edge.to_executorch().buffer
        kind = Kind.LATE
        method = Runtime.get().load_program(buffer).load_method("forward")
        output = method.execute(torch.utils._pytree.tree_leaves(samples[1]))
    except Exception as error:
        return Outcome(seed, kind, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    far = difference(converted, samples[1], output)
    return Outcome(seed, Kind.WRONG if far else Kind.RIGHT, far)


FLOWS["executorch"] = executorch


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="xnnpack")
    parser.add_argument("--flow", choices=sorted(FLOWS), default="pt2e")
    parser.add_argument("--seeds", default="0:100", help="FIRST:END")
    parser.add_argument("--again", nargs="*", type=int, default=[], help="seeds to take anew")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one model")
    parser.add_argument(
        "--write", action="store_true", help="write the tables into docs/fuzz.md and README.md"
    )
    given = parser.parse_args()
    file = FOUND / f"{given.backend}-{given.flow}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    first, _, end = given.seeds.partition(":")
    wanted = sorted({*range(int(first), int(end)), *given.again})
    FOUND.mkdir(parents=True, exist_ok=True)
    with Worker(given.backend, given.flow, given.timeout) as worker:
        for seed in tqdm(wanted, disable=None, leave=False):
            recipe = recipe_of(given.flow, seed)
            model = hashlib.sha256(recipe.code.encode()).hexdigest()[:16]
            if seed not in given.again and found.get(str(seed), {}).get("model") == model:
                continue
            outcome = worker.outcome(recipe)
            found[str(seed)] = {"model": model, **asdict(outcome)}
            file.write_text(json.dumps(found, indent=0), encoding="utf-8")
            tqdm.write(f"{seed}: {outcome.kind}: {outcome.detail} {outcome.mended or ''}")
    rows = [_row(file.stem, json.loads(file.read_text())) for file in sorted(FOUND.glob("*.json"))]
    head = ["backend, flow", "models", *COLUMNS, "mended", "nodes without a decision"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *rows, ""]
    print("\n".join(lines))
    if given.write:
        pages = {PAGE: "\n".join(lines)}
        if all((FOUND / f"xnnpack-{flow}.json").exists() for flow in XNNPACK.values()):
            pages[README] = beside_executorch()
        made = {page: with_parts(page, {"fuzz": text}) for page, text in pages.items()}
        write_pages(made, (), "benchmarks/fuzz.py")
    return 0


def beside_executorch() -> str:
    """Return a table of the seeds that both qcore and ExecuTorch alone took to XNNPACK."""
    files = {name: FOUND / f"xnnpack-{flow}.json" for name, flow in XNNPACK.items()}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    ours, theirs = found.values()
    seeds = [seed for seed in ours if seed in theirs and ours[seed]["kind"] != Kind.INVALID]
    head = [f"{len(seeds)} models, XNNPACK", "accepted", *ACCEPTED]
    rows = []
    for name, outcomes in found.items():
        kinds = [outcomes[seed]["kind"] for seed in seeds]
        counts = [sum(kind in of for kind in kinds) for of in ACCEPTED.values()]
        rows.append(_line([name, sum(counts), *counts]))
    separator = _line(["---", *["---:"] * (len(head) - 1)])
    return "\n".join(["", _line(head), separator, *rows, "", ""])


def _row(name: str, found: dict[str, dict[str, Any]]) -> str:
    outcomes = [o for o in found.values() if o["kind"] != Kind.INVALID]
    counts = Counter(outcome["kind"] for outcome in outcomes)
    backend, _, flow = name.partition("-")
    cells = [f"{backend}, {flow}", len(outcomes), *(counts[kind] for kind in COLUMNS.values())]
    cells += [sum(bool(outcome[of]) for outcome in outcomes) for of in ("mended", "undecided")]
    return _line(cells)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())
