"""Reads a diffusers pipeline folder by component."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from scaledreamer.cameras import CameraDistribution
from scaledreamer.config import build
from scaledreamer.encoders import clip_text, t5_text
from scaledreamer.encoders._pretrained import load_pretrained, locate
from scaledreamer.interfaces import BackgroundDistribution
from scaledreamer.priors._images import ImageSpace, LatentSpace, PixelSpace
from scaledreamer.priors._schedule import (
    FlowSchedule,
    Prediction,
    VPSchedule,
    from_scheduler_config,
)
from scaledreamer.priors._text import OffloadedText, TextSide
from scaledreamer.storage import read_json

CARD_FILE = "scaledreamer.json"
INDEX_FILE = "model_index.json"
_STEM = "diffusion_pytorch_model"
FAMILIES = {
    "UNet2DConditionModel": "unet",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "PixArtTransformer2DModel": "pixart",
    "Transformer2DModel": "pixart",
}
"""The prior's name in a configuration, by the class of a folder's network."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """`scaledreamer.json`: what a diffusers folder has no place for.

    Without the file a folder is what its pipeline says, without cameras.
    """

    space: Literal["pixel", "latent"] = "latent"
    """pixel: the network denoises pixel-unshuffled images in [-1, 1]."""
    patch: int = 1
    """Side of the unshuffled blocks in pixel space."""
    size_px: int | None = None
    """Side of the images it was trained on; by default what the network's sample size says."""
    camera_features: int = 0
    """Width of the camera input (class labels); 0: none."""
    num_views: int = 1
    """Views of a scene that the network sees together."""
    cameras: CameraDistribution | None = None
    """Cameras of the training images."""
    background: BackgroundDistribution | None = None
    """Backgrounds of the training images."""
    front_deg: float = 30.0
    """Half-width of the sectors that captions call front and back; by default ScaleDreamer's."""
    overhead_deg: float = 60.0
    """Elevation above which captions say "overhead view"; by default ScaleDreamer's."""
    use_text_mask: bool = False
    """Hide padding from a UNet's cross-attention; Stable Diffusion was trained to see it."""


@dataclass(frozen=True)
class Parts:
    """Frozen components on one device."""

    network: Any
    space: ImageSpace
    text: TextSide
    schedule: VPSchedule | FlowSchedule
    prediction: Prediction
    card: Card
    size_px: int
    """Side of the images that the network was trained on."""


def family_of(root: Path) -> str:
    """Name of the prior in a configuration that reads this folder.

    Raises: ValueError when there is no index, or no network that is known.
    """
    index = _read_index(root)
    for component in ("unet", "transformer"):
        name = FAMILIES.get((index.get(component) or ("", ""))[1])
        if name is not None:
            is_multi_view = name == "unet" and _read_card(root, index).num_views > 1
            return "mvdream" if is_multi_view else name
    known = ", ".join(FAMILIES)
    raise ValueError(f"{root / INDEX_FILE}: names no network that is supported; known: {known}")


class Folder:
    """One pipeline folder; every error names the file that is missing or does not fit."""

    def __init__(
        self,
        spec: str,
        dtype: torch.dtype,
        device: torch.device | str,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.root = locate(spec, "prior.folder")
        self.dtype, self.device = dtype, torch.device(device)
        self._precision = precision
        self.index = _read_index(self.root)
        self.card = _read_card(self.root, self.index)

    def has(self, component: str) -> bool:
        entry = self.index.get(component)
        return bool(entry) and entry[1] is not None

    def part(self, component: str, classes: Sequence[str] = (), file: str = "config.json") -> Path:
        """A component's folder, its class one of `classes` where any are given."""
        index = self.root / INDEX_FILE
        if not self.has(component):
            raise ValueError(f"{index}: names no {component}; the prior needs one")
        found = self.index[component][1]
        if classes and found not in classes:
            name = FAMILIES.get(found)
            hint = f"; set prior.name={name}" if name else ""
            raise ValueError(
                f"{index}: {component} is a {found}; only {', '.join(classes)} works here{hint}"
            )
        if not (self.root / component / file).is_file():
            raise ValueError(
                f"{self.root / component / file}: missing, though {INDEX_FILE} names a {component}"
            )
        return self.root / component

    def network(self, component: str, model_class: Any, names: Sequence[str] = ()) -> Any:
        """The denoiser, which may go by several class names."""
        folder = self.part(component, names or (model_class.__name__,))
        return load_pretrained(model_class, folder, _STEM, self.dtype, self.device)

    def space(
        self, tiny_vae: str = "", use_offload: bool = False, may_overflow: bool = False
    ) -> ImageSpace:
        """Of a VAE that `may_overflow` float16, the configuration says whether it does."""
        if self.card.space == "pixel":
            return PixelSpace(self.card.patch)
        if tiny_vae:
            folder, model_class = locate(tiny_vae, "prior.tiny_vae"), AutoencoderTiny
        else:
            folder, model_class = self.part("vae", ("AutoencoderKL",)), AutoencoderKL
        dtype = self.dtype
        is_low = dtype == torch.float16 and may_overflow and not tiny_vae
        if is_low and read_json(folder / "config.json").get("force_upcast", True):
            dtype = torch.float32
        vae = load_pretrained(model_class, folder, _STEM, dtype, self.device)
        return LatentSpace(vae, self._precision, self.device, use_offload)

    def clip(
        self, number: str = "", use_penultimate: bool = False, *, on: torch.device
    ) -> clip_text.ClipTextEncoder:
        """The text tower `text_encoder` + number; float32."""
        classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
        weights = self.part(f"text_encoder{number}", classes)
        tokenizer = self.part(f"tokenizer{number}", file="tokenizer_config.json")
        return clip_text.load_part(weights, tokenizer, on, use_penultimate, is_hashed=False)

    def t5(
        self,
        number: str,
        max_tokens: int,
        use_mask: bool,
        use_lower_case: bool = False,
        *,
        on: torch.device,
    ) -> t5_text.T5TextEncoder:
        """The T5 `text_encoder` + number, in the prior's precision."""
        return t5_text.load_part(
            self.part(f"text_encoder{number}", ("T5EncoderModel",)),
            self.part(f"tokenizer{number}", file="tokenizer_config.json"),
            max_tokens,
            use_mask,
            use_lower_case,
            # on a CPU, float16 is many times slower than bfloat16
            torch.bfloat16 if on.type == "cpu" and self.dtype == torch.float16 else self.dtype,
            on,
        )

    def text_device(self, use_offload: bool) -> torch.device:
        is_moved = use_offload and self.device.type != "meta"
        return torch.device("cpu") if is_moved else self.device

    def schedule(self) -> tuple[VPSchedule | FlowSchedule, Prediction]:
        file = "scheduler_config.json"
        path = self.part("scheduler", file=file) / file
        try:
            return from_scheduler_config(read_json(path), self.device)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def check(self, component: str, network: Any, fits: Mapping[str, Any]) -> None:
        """Raises: ValueError naming the first key of the network's configuration that differs."""
        for name, expected in fits.items():
            got = network.config[name]
            if got != expected:
                raise ValueError(
                    f"{self.root / component / 'config.json'}: {name} is {got}; the folder's other "
                    f"parts need {expected}"
                )

    def parts(
        self,
        network: Any,
        space: ImageSpace,
        text: TextSide,
        use_offload: bool,
        size_px: int | None = None,
    ) -> Parts:
        """With the folder's schedule; the size is the network's own where none is given."""
        schedule, prediction = self.schedule()
        if use_offload:
            text = OffloadedText(text, self.device)
        size = size_px or self.size_px(network, space)
        return Parts(network, space, text, schedule, prediction, self.card, size)

    def size_px(self, network: Any, space: ImageSpace) -> int:
        """From the network's sample size; raises ValueError where the card says otherwise."""
        sample = network.config["sample_size"]
        size = int(sample if isinstance(sample, int) else sample[0]) * space.factor
        if self.card.size_px not in (None, size):
            raise ValueError(
                f"{self.root / CARD_FILE}: size_px is {self.card.size_px}; the network's "
                f"sample_size says {size}"
            )
        return size


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX_FILE
    if not path.is_file():
        raise ValueError(f"{path}: missing; a prior is a diffusers pipeline folder")
    return read_json(path)


def _read_card(root: Path, index: Mapping[str, Any]) -> Card:
    path = root / CARD_FILE
    if path.is_file():
        return build(Card, read_json(path), str(path))
    is_pixels = str(index.get("_class_name", "")).startswith("IF")
    return Card(space="pixel" if is_pixels else "latent")
