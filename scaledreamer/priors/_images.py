"""From images to what a network denoises, and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@runtime_checkable
class ImageSpace(Protocol):
    """`encode` takes images in [-1, 1], `decode` gives such."""

    factor: int
    """Pixels along the side of one latent."""
    channels: int
    is_pixels: bool
    """Whether latents are the images themselves, bounded by -1 and 1."""

    @property
    def modules(self) -> list[nn.Module]:
        """What it keeps in memory."""
        ...

    @property
    def idle(self) -> list[nn.Module]:
        """What of it only decoding needs."""
        ...

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor: ...

    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]: ...


class PixelSpace:
    """Blocks of `patch` x `patch` pixels become channels; 1 leaves images as they are."""

    is_pixels = True

    def __init__(self, patch: int) -> None:
        self.factor = patch
        self.channels = 3 * patch**2

    @property
    def modules(self) -> list[nn.Module]:
        return []

    @property
    def idle(self) -> list[nn.Module]:
        return []

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor:
        return F.pixel_unshuffle(images, self.factor)

    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]:
        return F.pixel_shuffle(latents, self.factor)


class LatentSpace:
    """The mean of a VAE's posterior, shifted and scaled as its configuration says.

    A tiny autoencoder (Bohan, "Tiny AutoEncoder for Stable Diffusion") gives latents of the same
    meaning at a small share of the cost. With `use_offload` the decoder stays on the CPU.
    """

    is_pixels = False

    def __init__(
        self,
        vae: Any,
        precision: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
        use_offload: bool = False,
    ) -> None:
        self._vae = vae
        self._is_tiny = isinstance(vae, AutoencoderTiny)
        self._precision = precision
        self._device = device
        self._use_offload = use_offload and not self._is_tiny and device.type != "meta"
        levels = vae.config["encoder_block_out_channels" if self._is_tiny else "block_out_channels"]
        self.factor = 2 ** (len(levels) - 1)
        self.channels = int(vae.config["latent_channels"])
        self._scale = float(vae.config["scaling_factor"])
        self._shift = float(vae.config.get("shift_factor") or 0.0)
        if self._use_offload:
            self._vae.decoder.to("cpu")

    @property
    def modules(self) -> list[nn.Module]:
        return [self._vae]

    @property
    def idle(self) -> list[nn.Module]:
        return [] if self._is_tiny else [self._vae.decoder]

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor:
        with self._precision():
            encoded = self._vae.encode(images.to(self._vae.dtype))
        latents = encoded.latents if self._is_tiny else encoded.latent_dist.mean
        return (latents.float() - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]:
        decoder = self._vae.decoder
        if self._use_offload:
            decoder.to(self._device)
        with self._precision():
            decoded = self._vae.decode((latents / self._scale + self._shift).to(self._vae.dtype))
        if self._use_offload:
            decoder.to("cpu")
        return decoded.sample.float()
