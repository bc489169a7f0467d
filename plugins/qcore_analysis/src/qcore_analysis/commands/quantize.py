"""``qcore quantize`` and ``qcore explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore.report import dump
from qcore_analysis.commands.answers import Quantized
from qcore_analysis.commands.options import (
    Batch,
    Calibration,
    Data,
    Everything,
    FromRecipe,
    KeepFloat,
    Method,
    Model,
    Options,
    Pictures,
    Scheme,
    Shapes,
    SomeBackend,
    chosen_recipe,
    load_torch,
    read,
    settings,
)
from qcore_analysis.errors import InputError

if TYPE_CHECKING:
    from qcore.report import Report

__all__ = ["explain", "quantize"]

#: How many samples a report compares: figures settle within some tens.
_COMPARED: Final = 32


def quantize(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The program's file, or a .qpt2 file.")
    ],
    model: Annotated[
        str,
        typer.Argument(
            help="A .pt2 file, or package.module:factory; or the recipe's; or a .qpt2 file, "
            "which is lowered."
        ),
    ] = "",
    backend: SomeBackend = "",
    calibration: Calibration = "",
    scheme: Scheme = "",
    keep_float: KeepFloat = None,
    batch: Batch = 1,
    pictures: Pictures = "",
    method: Method = "",
    option: Options = None,
    recipe: FromRecipe = None,
    save_recipe: Annotated[Path | None, typer.Option(help="Write every choice to it.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page of all to it: .html.")] = None,
    node_data: Annotated[
        Path | None, typer.Option(help="Write each node's error for Model Explorer: .json.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Other samples, to compare on; by default those of calibration.")
    ] = "",
    everything: Everything = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model and write a program for a backend."""
    load_torch(quiet)
    if model.endswith(".qpt2"):
        late = {
            "--scheme": scheme,
            "--keep-float": keep_float,
            "--method": method,
            "--calibration": calibration,
            "--recipe": recipe,
            "--save-recipe": save_recipe,
            "--report": report,
            "--node-data": node_data,
        }
        _refuse_late(model, output, [name for name, value in late.items() if value])
        lowered = _lower(Path(model), output, backend, settings(option), quiet)
        _tell(output, lowered, "", everything, as_json, quiet)
        return
    from qcore.cli.progress import bars, step
    from qcore.files import check_writable
    from qcore_analysis.page import write_html, write_node_data

    chosen = chosen_recipe(
        recipe,
        model=model,
        backend=backend,
        data=calibration,
        scheme=scheme,
        pictures=pictures,
        calibration=method,
        batch=batch,
        option=option,
        keep_float=keep_float,
    )
    if not chosen.model:
        raise InputError("No model: name a .pt2 file or package.module:factory.")
    if not chosen.data:
        raise InputError(
            "No calibration data: pass --calibration DATA, 32 to 512 typical inputs. Data is a "
            ".safetensors, .npz or .pt file, a folder of pictures, or package.module:iterable."
        )
    wanted = (output, "program.pte"), (save_recipe, "recipe.toml"), (report, "report.html")
    for path, example in (*wanted, (node_data, "nodes.json")):
        if path is not None:
            check_writable(path, "the result", example, InputError)
    # What is wrong is known before anything takes long.
    if chosen.is_source(chosen.quantizer()):
        treats = f"{chosen.scheme or chosen.backend} treats weights before the model is captured: "
        if node_data:
            raise InputError(f"{treats}no error by node is known. Leave --node-data out.")
        if output.suffix == ".qpt2":
            raise InputError(
                f"{treats}there is no captured model for {output}. Name a program, such as "
                f"{output.with_suffix('.pte')}."
            )
    names = (chosen.data, data) if data else (chosen.data,)
    loaded, (samples, *others) = read(
        chosen.model, *names, batch=chosen.batch, pictures=chosen.pictures, quiet=quiet
    )
    compare_on = (*others, samples)[0][:_COMPARED] if report or node_data else ()
    used = chosen.check_made_with(loaded, samples)
    reports: list[Report]
    if output.suffix == ".qpt2" and not compare_on:
        result = chosen.quantize(loaded, samples, progress=bars(quiet))
        result.save(output)
        reports = [result.report]
    else:
        made = chosen.make(loaded, samples, progress=bars(quiet), compare_on=compare_on)
        (made.result if made.result and output.suffix == ".qpt2" else made.program).save(output)
        reports = [made.report, made.program.report]
        if report is not None:
            with step("writing the page", quiet) as over:
                write_html(report, chosen.model, made, used, over(compare_on), unseen=bool(data))
        if node_data is not None:
            write_node_data(node_data, made)
    if save_recipe is not None:
        used.save(save_recipe)
    hint = ""
    if output.suffix == ".qpt2":
        given = "".join(f" --option {name}={value}" for name, value in chosen.options.items())
        hint = f" qcore quantize {output} -o {output.with_suffix('.pte')}{given} lowers it."
    _tell(output, reports, hint, everything, as_json, quiet)


def _refuse_late(model: str, output: Path, named: list[str]) -> None:
    """Raise where a quantized model is to be quantized otherwise, or to become one again."""
    if named:
        raise InputError(
            f"{model} is quantized already, so {', '.join(named)} would change nothing. Leave it "
            "out, or name the float model."
        )
    if output.suffix == ".qpt2":
        raise InputError(
            f"{model} is quantized already. Name a program to make of it, such as "
            f"{output.with_suffix('.pte')}."
        )


def _lower(
    path: Path, output: Path, backend: str, options: dict[str, Any], quiet: bool
) -> list[Report]:
    """Make a program of what was quantized before, and return the reports of both."""
    import qcore
    from qcore.files import check_writable
    from qcore_analysis.making import lowered
    from qcore_analysis.models import quantized_example

    check_writable(output, "the program", "program.pte", InputError)
    result = qcore.load_quantized(path)
    quantizer = qcore.get_quantizer(backend or result.report.backend, **options)
    program = lowered(quantizer, result.model, quantized_example(result.model), {}, quiet)
    program.save(output)
    return [result.report, program.report]


def _tell(
    output: Path, reports: list[Report], hint: str, everything: bool, as_json: bool, quiet: bool
) -> None:
    """Answer with what was written: the report of what was quantized, and that of a program."""
    lowering: Any = reports[1] if reports[1:] else None
    made: Any = reports[0]
    data = dump(Quantized(str(output), output.stat().st_size, made, lowering))
    texts = (_text(report, everything) for report in reports)
    text = "\n".join([*texts, f"Wrote {output}.{hint}"])
    answer(text, data, as_json, quiet)


def _text(report: Any, everything: bool) -> str:
    """Return a report for people, on request with a line for each node or layer."""
    lines = [str(report)]
    if everything:
        for node in getattr(report, "decisions", ()):
            why = ". ".join(filter(None, (node.reason, node.advice)))
            lines.append(_line(node.place, node.operator, node.scheme or "float", why))
        for layer in getattr(report, "layers", ()):
            lines.append(_line(layer.name, layer.kind, layer.scheme or "as it was", layer.reason))
        for node in (*getattr(report, "undelegated", ()), *getattr(report, "stray", ())):
            lines.append("  " + ". ".join(filter(None, (str(node), getattr(node, "advice", "")))))
    return "\n".join(lines)


def _line(place: str, kind: str, scheme: str, why: str) -> str:
    return f"  {place} ({kind}): {scheme}" + f", {why}" * bool(why)


def explain(
    model: Model,
    backend: SomeBackend = "",
    scheme: Scheme = "",
    keep_float: KeepFloat = None,
    data: Data = "",
    batch: Batch = 1,
    pictures: Pictures = "",
    input_shape: Shapes = None,
    option: Options = None,
    recipe: FromRecipe = None,
    everything: Everything = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what would be quantized, what not and why; nothing is calibrated."""
    load_torch(quiet)
    import qcore
    from qcore.cli.progress import step
    from qcore_analysis.models import example_inputs

    chosen = chosen_recipe(
        recipe,
        backend=backend,
        scheme=scheme,
        pictures=pictures,
        batch=batch,
        option=option,
        keep_float=keep_float,
    )
    quantizer = chosen.quantizer()
    if chosen.is_source(quantizer):
        raise InputError(
            f"{chosen.scheme or backend} treats weights before the model is captured: "
            "qcore.quantize_ says what it would do. Name a scheme of the PT2E flow here."
        )
    names = (data,) if data else ()
    loaded, sets = read(model, *names, batch=chosen.batch, pictures=chosen.pictures, quiet=quiet)
    example: Any = sets[0][0] if sets else example_inputs(loaded, tuple(input_shape or ()))
    with step("capturing and annotating", quiet, of=model):
        report = qcore.explain(loaded, quantizer, example)
    answer(_text(report, everything), report.to_dict(), as_json, quiet)
