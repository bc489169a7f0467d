"""Data as the command line names it: files of tensors, folders of pictures, iterables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from attrs import frozen
from torch.utils._pytree import tree_leaves

from qcore.cli.progress import Over
from qcore.errors import near_misses
from qcore_analysis.errors import InputError
from qcore_analysis.models import imported, tensor_bytes

if TYPE_CHECKING:
    from qcore import LoweredProgram

__all__ = [
    "Preprocessing",
    "as_example",
    "called",
    "data_digest",
    "executed",
    "load_data",
    "taken_by_the_model",
]

_FORMS: Final = (
    "Data is a .safetensors, .npz or .pt file, a folder of pictures, or package.module:iterable."
)
_PICTURES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@frozen
class Preprocessing:
    """What becomes of a picture before the model sees it: (pixel - mean) / std, pixels 0 to 255.

    Attributes:
        size: Height and width in pixels.
        mean: What is subtracted, a number for all channels or one for each.
        std: What is divided by then.
    """

    size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (255.0,)

    @classmethod
    def of(cls, text: str) -> Preprocessing:
        """Read what the command line says, such as ``size=224 mean=127 std=128``.

        Args:
            text: The settings; several numbers are separated by ``/``.

        Returns:
            The preprocessing.

        Raises:
            InputError: A setting is unknown or no number, or the size is missing.
        """
        known = ("size", "mean", "std")
        found: dict[str, tuple[float, ...]] = {}
        for part in re.split(r"[\s,]+", text.strip()):
            key, _, value = part.partition("=")
            if key not in known:
                close = near_misses(key, known)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise InputError(f"Pictures have no setting {key!r}.{hint} {_SETTINGS}")
            try:
                found[key] = tuple(map(float, value.split("/")))
            except ValueError:
                raise InputError(f"{part!r} is no number. {_SETTINGS}") from None
        if "size" not in found:
            raise InputError(f"The size of pictures is missing. {_SETTINGS}")
        size = found.pop("size")[0]
        return cls(int(size), **found)

    def __call__(self, path: Path) -> torch.Tensor:
        """Return a picture as a tensor of shape (1, 3, size, size)."""
        import numpy
        from PIL import Image

        try:
            with Image.open(path) as picture:
                scaled = picture.convert("RGB").resize((self.size, self.size))
        except (OSError, SyntaxError) as error:
            raise InputError(
                f"{path} is no picture that can be read ({error}). Mend it or take it out of the "
                "folder."
            ) from error
        pixels = torch.from_numpy(numpy.array(scaled)).float().permute(2, 0, 1)
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).unsqueeze(0)


_SETTINGS: Final = (
    'Declare what the model takes: --pictures "size=224 mean=127 std=128", or a number a channel, '
    "as in mean=123.7/116.3/103.5."
)


def load_data(text: str, *, batch: int = 1, pictures: str = "") -> list[Any]:
    """Return the samples that a text names.

    Args:
        text: A file, a folder of pictures, or ``package.module:iterable``. In files of named
            tensors the first dimension counts samples: one tensor is the model's one argument,
            several are keyword arguments.
        batch: How many of them make one sample.
        pictures: The preprocessing of pictures, as :meth:`Preprocessing.of` reads it.

    Returns:
        Samples as ``qcore.quantize`` takes them.

    Raises:
        InputError: There is no such data, it cannot be read, or there is none in it.
    """
    path = Path(text)
    if ":" in text and not path.exists():
        samples = imported(text, "collection of samples")
        if not isinstance(samples, Iterable) or isinstance(samples, (str, bytes)):
            raise InputError(
                f"{text} gives {type(samples).__name__}, and a collection of samples is due."
            )
        found = list(samples)
    elif not path.exists():
        raise InputError(f"There is no data {text}. {_FORMS}")
    elif path.is_dir():
        found = _pictures(path, pictures)
    else:
        found = _split(_tensors(path), batch, text)
    if not found:
        raise InputError(f"{text} holds no samples. {_FORMS}")
    return found


def called(model: Any, sample: Any) -> Any:
    """Call a model, or what takes its arguments, with a sample."""
    if isinstance(sample, Mapping):
        return model(**sample)
    return model(*sample) if isinstance(sample, (tuple, list)) else model(sample)


def executed(program: LoweredProgram, samples: Sequence[Any], over: Over = iter) -> list[Any]:
    """Return what a program gives for each sample, in one process; ``over`` shows how many."""
    with program.session() as run:
        return [called(run, sample) for sample in over(samples)]


@contextmanager
def taken_by_the_model(index: int) -> Iterator[None]:
    """Say which sample it is that a float model does not take.

    Args:
        index: The sample's place in the data.

    Raises:
        InputError: Running the model in the context fails.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"The float model does not take sample {index} of --data: {error}. Pass data of the "
            "form that it was calibrated with."
        ) from error


def as_example(sample: Any) -> Any:
    """Return a sample as ``quantizer.lower`` takes its example inputs."""
    return sample if isinstance(sample, (tuple, list, Mapping)) else (sample,)


def data_digest(samples: Iterable[Any]) -> str:
    """Return a digest of samples: ``sha256:`` and the digest over their tensors, in order."""
    found = hashlib.sha256()
    for leaf in tree_leaves(list(samples)):
        plain = tensor_bytes(leaf) if isinstance(leaf, torch.Tensor) else repr(leaf).encode()
        found.update(plain)
    return f"sha256:{found.hexdigest()}"


def _pictures(folder: Path, settings: str) -> list[Any]:
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)
    except OSError as error:
        raise InputError(
            f"Cannot read the folder {folder}: {error.strerror}. Pass one that you may read."
        ) from error
    if not paths:
        raise InputError(f"The folder {folder} has no pictures ({', '.join(_PICTURES)}) in it.")
    if not settings:
        raise InputError(f"{folder} is a folder of pictures. {_SETTINGS}")
    return list(map(Preprocessing.of(settings), paths))


def _tensors(path: Path) -> Any:
    """Read a file of tensors; nothing in it is run."""
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pt": _pt}
    if path.suffix not in readers:
        raise InputError(f"{path} is no data: {path.suffix or 'no suffix'} is unknown. {_FORMS}")
    try:
        return readers[path.suffix](path)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # Each library has its own, for each kind of damage.
        reason = (str(error) or repr(error)).splitlines()[0]
    raise InputError(
        f"Cannot read {path} as tensors: {reason}. Write it again, with plain tensors only "
        "(no objects): safetensors.torch.save_file, numpy.savez or torch.save."
    )


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _npz(path: Path) -> Any:
    import numpy

    with numpy.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _pt(path: Path) -> Any:
    return torch.load(path, weights_only=True, map_location="cpu")


def _split(data: Any, batch: int, source: str) -> list[Any]:
    """Make samples: rows of tensors; a list holds samples already."""
    if isinstance(data, torch.Tensor):
        data = {"": data}
    if isinstance(data, (list, tuple)):
        return list(data)
    if not isinstance(data, Mapping) or not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise InputError(
            f"{source} holds {type(data).__name__}, and tensors, or a list of samples, are due."
        )
    lengths = {name: len(value) if value.dim() else 0 for name, value in data.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"The tensors of {source} have different numbers of samples: {told}.")
    count = min(lengths.values(), default=0)
    if batch < 1 or count % batch:
        raise InputError(f"{count} samples of {source} do not make batches of {batch}.")
    rows = [
        {name: value[start : start + batch] for name, value in data.items()}
        for start in range(0, count, batch)
    ]
    return [next(iter(row.values())) for row in rows] if len(data) == 1 else list(rows)
