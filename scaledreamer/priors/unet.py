"""Text-to-image UNets from diffusers folders, in pixel space (ToyBox) or in VAE latents."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scaledreamer.cameras import CameraDistribution
from scaledreamer.interfaces import (
    BackgroundDistribution,
    CameraBatch,
    Condition,
    ConditionRows,
    TextEmbedding,
)
from scaledreamer.priors import _cameras, _lora, _views
from scaledreamer.priors._folder import Parts, read_parts
from scaledreamer.priors._schedule import per_row, to_clean, to_noise
from scaledreamer.storage import resolve_folder


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: str = "toybox:prior"
    """A diffusers pipeline folder, or `toybox:prior` for the shipped one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights and of what the network computes; float16 for a GPU only."""
    autocast: bool = False
    """Compute in bfloat16 from float32 weights: about half the time on a CPU."""
    use_cameras: bool = True
    """Give the camera to a network that takes one; False drops it, and the prior is a broad one."""
    use_view_words: bool = False
    """End every caption in ", front view" and the like, by its camera."""
    blend_view_words: bool = False
    """Mix the embeddings of neighbouring view words by the azimuth instead of switching."""
    use_perp_neg: bool = False
    """Lead each view away from looking like the front or the side; needs view words."""
    negative_prompt: str = ""
    """Text of the null rows that classifier-free guidance leads away from."""
    bad_prompt: str = ""
    """Text of what no image should be, which the nfsd loss leads away from; empty: none."""
    chunk_size: int = 0
    """Most rows the network takes at once, against memory; 0: all of them."""
    channels_last: bool = True
    """Memory layout of the network's activations; faster on CPUs and on tensor cores."""

    def __post_init__(self) -> None:
        if self.chunk_size < 0:
            raise ValueError(f"prior.chunk_size: got {self.chunk_size}; 0 (no limit) or more")
        for name in ("blend_view_words", "use_perp_neg"):
            if getattr(self, name) and not self.use_view_words:
                raise ValueError(f"prior.{name}: needs prior.use_view_words=true")
        if self.autocast and self.dtype != "float32":
            raise ValueError(f"prior.autocast: needs dtype float32, got {self.dtype}; drop one")


_NUM_FIXED = 2
"""Texts that every condition encodes before its captions."""


class UNetPrior:
    """A frozen UNet, outside every module tree, on the Prior contract. Returns float32."""

    def __init__(self, parts: Parts, config: Config, device: torch.device | str = "cpu") -> None:
        self._parts = parts
        self._config = config
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        if config.channels_last:
            parts.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._has_cameras = parts.card.camera_features > 0
        sample_size = int(parts.unet.config["sample_size"])
        self.schedule = parts.schedule
        self.camera_dim = _cameras.NUM_FEATURES
        self.cameras: CameraDistribution | None = parts.card.cameras
        self.background: BackgroundDistribution | None = parts.card.background
        self.size_px = sample_size * parts.pixels_per_latent
        self.latent_shape = (int(parts.unet.config["in_channels"]), sample_size, sample_size)

    @property
    def num_parameters(self) -> int:
        """Of the network that `predict_noise` runs."""
        return sum(weight.numel() for weight in self._parts.unet.parameters())

    def _precision(self) -> torch.autocast:
        """The configured precision, whatever autocast the caller is under."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.autocast)

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor:
        """Images in [0, 1] of any size -> latents [N, C, h, w]; the mean of a VAE's posterior."""
        images = images.to(self._device, torch.float32)
        size = (self.size_px, self.size_px)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        images = images * 2 - 1
        vae = self._parts.vae
        if vae is None:
            return F.pixel_unshuffle(images, self._parts.pixels_per_latent)
        with self._precision():
            latents = vae.encode(images.to(self._dtype)).latent_dist.mean.float()  # type: ignore
        return (latents - (vae.config["shift_factor"] or 0.0)) * vae.config["scaling_factor"]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]:
        """Latents -> images in [0, 1]; without gradient."""
        vae = self._parts.vae
        if vae is None:
            images = F.pixel_shuffle(latents, self._parts.pixels_per_latent)
        else:
            shift = vae.config["shift_factor"] or 0.0
            latents = latents / vae.config["scaling_factor"] + shift
            with self._precision():
                images = vae.decode(latents.to(self._dtype)).sample.float()  # type: ignore
        return (images / 2 + 0.5).clamp(0, 1)

    def condition(self, texts: Sequence[str], cameras: CameraBatch | None) -> Condition:
        """B texts and [B, V] cameras -> B * V scene-major rows; equal captions are encoded once."""
        num_views = 1
        if cameras is not None:
            num_scenes, num_views = cameras.azimuth_deg.shape
            if num_scenes != len(texts):
                raise ValueError(f"got {len(texts)} texts and cameras of {num_scenes} scenes")
        features = self._camera_rows(cameras, len(texts) * num_views)
        if cameras is not None and self._config.use_view_words:
            found = self._view_condition(texts, cameras, features)
        else:
            distinct = list(dict.fromkeys(texts))
            encoded = self._encode(distinct)
            place = {text: index for index, text in enumerate(distinct, start=_NUM_FIXED)}
            rows = torch.tensor([place[text] for text in texts for _ in range(num_views)])
            found = self._rows(encoded, encoded[rows.to(self._device)], features)
        if cameras is None:
            return found
        return replace(found, cameras=_cameras.camera_features(cameras).to(self._device))

    def _view_condition(
        self, texts: Sequence[str], cameras: CameraBatch, features: Tensor | None
    ) -> Condition:
        """Captions that end in view words, each text encoded once for every class that occurs."""
        config, parts = self._config, self._parts
        overhead_deg = parts.card.overhead_deg
        weights = _views.hard(cameras, parts.front_deg, overhead_deg)
        if config.blend_view_words:
            weights = _views.blended(cameras, overhead_deg)
        used = {name for name, w in zip(_views.CLASSES, weights.T, strict=True) if w.any()}
        used |= {*_views.NEGATIVES} if config.use_perp_neg else set()
        classes = [name for name in _views.CLASSES if name in used]
        captions = [f"{text}, {name} view" for text in dict.fromkeys(texts) for name in classes]
        encoded = self._encode(captions)
        place = {caption: index for index, caption in enumerate(captions, start=_NUM_FIXED)}
        num_views = len(weights) // len(texts)

        def rows(name: str) -> Tensor:
            found = [place.get(f"{text}, {name} view", 0) for text in texts]
            return torch.tensor(found, device=self._device).repeat_interleave(num_views)

        by_class = torch.stack([rows(name) for name in _views.CLASSES], dim=1)  # [N, 4]
        positive = encoded.mixed(by_class, weights.to(self._device))
        found = self._rows(encoded, positive, features)
        if not config.use_perp_neg:
            return found
        negatives = [ConditionRows(encoded[rows(name)], features) for name in _views.NEGATIVES]
        weights = _views.negative_weights(cameras, overhead_deg).to(self._device)
        return replace(found, negatives=tuple(negatives), negative_weights=weights)

    def _encode(self, captions: Sequence[str]) -> TextEmbedding:
        """The null and the bad text, then the captions: together, so that they are equally long."""
        fixed = (self._config.negative_prompt, self._config.bad_prompt)
        return self._parts.text([*fixed, *captions])

    def _rows(
        self, encoded: TextEmbedding, positive: TextEmbedding, features: Tensor | None
    ) -> Condition:
        null, bad = (
            ConditionRows(encoded[torch.full((len(positive),), row, device=self._device)], features)
            for row in range(_NUM_FIXED)
        )
        has_bad = bool(self._config.bad_prompt)
        return Condition(ConditionRows(positive, features), null, bad=bad if has_bad else None)

    def _camera_rows(self, cameras: CameraBatch | None, num_rows: int) -> Tensor | None:
        if not self._has_cameras:
            return None
        if cameras is None or not self._config.use_cameras:
            return torch.zeros(num_rows, self._parts.card.camera_features, device=self._device)
        return _cameras.camera_features(cameras).to(self._device)

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor:
        x_t = x_t.float()
        alpha, sigma = self._alpha_sigma(t, x_t)
        return to_noise(self._parts.prediction, self._network(x_t, t, rows), x_t, alpha, sigma)

    def lora_copy(self, rank: int, camera_dim: int) -> _lora.LoraCopy:
        """On a second network with the same frozen weights; the additions are float32.

        Raises: ValueError for float16, in which the gradients of the additions vanish.
        """
        if self._config.dtype == "float16":
            raise ValueError(
                "prior.dtype: got float16, whose gradients are too small to train a LoRA copy; "
                "take bfloat16 or float32"
            )
        takes_cameras = self._has_cameras and self._config.use_cameras
        unet, trained = _lora.lora_unet(self._parts.unet, rank, camera_dim, takes_cameras)
        twin = UNetPrior(replace(self._parts, unet=unet), self._config, self._device)

        def network(x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
            if rows.cameras is None:
                rows = replace(rows, cameras=x_t.new_zeros(len(x_t), camera_dim))
            return twin._network(x_t.float(), t, rows)

        return _lora.LoraCopy(network, self._parts.prediction, self.schedule, trained)

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return per_row(self.schedule.alpha(t), like), per_row(self.schedule.sigma(t), like)

    def _network(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        """The network's own output, in chunks, as float32."""
        size = self._config.chunk_size or len(x_t)
        starts = range(0, len(x_t), size)
        chunks = [slice(start, start + size) for start in starts]
        return torch.cat([self._chunk(x_t[part], t[part], rows[part]) for part in chunks])

    def _chunk(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        if self._config.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        cameras = rows.cameras
        with self._precision():
            output = self._parts.unet(
                x_t.to(self._dtype),
                self.schedule.timestep(t),
                encoder_hidden_states=rows.text.tokens.to(self._dtype),
                encoder_attention_mask=rows.text.mask if self._parts.use_text_mask else None,
                class_labels=None if cameras is None else cameras.to(self._dtype),
            )
        return output.sample.float()

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        num_steps: int = 30,
        guidance_scale: float = 2.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "N 3 H W"]:
        """Images in [0, 1] by deterministic sampling; in pixel space x_0 is clipped at each step.

        Source: Song et al., "Denoising diffusion implicit models", ICLR 2021, equation 12 with
        eta = 0. Guidance acts on the network's output, which stays exact where alpha is near 0.
        """
        count, parts = len(condition.positive), self._parts
        if noise is None:
            noise = torch.randn(count, *self.latent_shape, generator=generator)
        x_t = noise.to(self._device, torch.float32)
        both = ConditionRows.cat([condition.null, condition.positive])
        times = torch.linspace(1, 0, num_steps + 1, device=self._device)
        clean = x_t
        for now, following in itertools.pairwise(times):
            t = now.expand(2 * count)
            null, positive = self._network(torch.cat((x_t, x_t)), t, both).chunk(2)
            output = null + guidance_scale * (positive - null)
            alpha, sigma = self._alpha_sigma(t[:count], x_t)
            clean = to_clean(parts.prediction, output, x_t, alpha, sigma)
            if parts.vae is None:
                clean = clean.clamp(-1, 1)
            eps = (x_t - alpha * clean) / sigma
            if following > 0:
                alpha, sigma = self._alpha_sigma(following.expand(count), x_t)
                x_t = alpha * clean + sigma * eps
        return self.decode(clean)


def create(config: Config, device: torch.device | str = "cpu") -> UNetPrior:
    """Raises: ValueError naming the file of the folder that is missing or does not fit."""
    parts = read_parts(resolve_folder(config.folder), getattr(torch, config.dtype), device)
    return UNetPrior(parts, config, device)
