"""What all diffusers priors share; a family adds how its network is called."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
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
from scaledreamer.priors._folder import Folder, Parts
from scaledreamer.priors._schedule import per_row, to_clean, to_noise

_NUM_FIXED = 2
"""Texts that every condition encodes before its captions."""


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: str = ""
    """A diffusers pipeline folder, a hub id `OWNER/NAME[@REVISION]`, or `toybox:prior`."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights and of what the network computes; float16 for a GPU only."""
    autocast: bool = False
    """Compute in bfloat16 from float32 weights: about half the time on a CPU."""
    image_px: int = 0
    """Side of the images that renders become before they are encoded; 0: the network's own.
    Smaller ones cost less and are further from what it was trained on."""
    tiny_vae: str = ""
    """Folder or hub id of a tiny autoencoder in the VAE's place, on the gradient's path too."""
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
    use_offload: bool = False
    """Keep the text encoders and the VAE's decoder on the CPU; encoded texts are remembered."""
    use_compile: bool = False
    """Run the network through `torch.compile`: minutes at the first step, then faster ones."""

    def __post_init__(self) -> None:
        for name in ("chunk_size", "image_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"prior.{name}: got {getattr(self, name)}; 0 (no limit) or more")
        for name in ("blend_view_words", "use_perp_neg"):
            if getattr(self, name) and not self.use_view_words:
                raise ValueError(f"prior.{name}: needs prior.use_view_words=true")
        if self.autocast and self.dtype != "float32":
            raise ValueError(f"prior.autocast: needs dtype float32, got {self.dtype}; drop one")


def precision(config: Config, device: torch.device | str) -> AbstractContextManager[Any]:
    """The configured precision, whatever autocast the caller is under."""
    kind = torch.device(device).type
    return torch.autocast("cpu" if kind == "meta" else kind, torch.bfloat16, config.autocast)


def open_folder(config: Config, device: torch.device | str) -> Folder:
    """Raises: ValueError when there is none, or it is no pipeline folder."""
    if not config.folder:
        raise ValueError("prior.folder: got none; give a pipeline folder or a hub id OWNER/NAME")
    dtype: torch.dtype = getattr(torch, config.dtype)
    return Folder(config.folder, dtype, device, lambda: precision(config, device))


class DiffusionPrior(ABC):
    """A frozen network, outside every module tree, on the Prior contract. Returns float32.

    On the device "meta" it has shapes and no weights, for estimates.
    """

    num_views = 1
    """Views of a scene that the network sees together; rows come in such groups."""
    _size_multiple = 1
    """What the side of the latents must be a multiple of."""
    _time_layer = "time_embedding.linear_2"
    """The layer whose output is the network's embedding of the time."""

    def __init__(self, parts: Parts, config: Config, device: torch.device | str = "cpu") -> None:
        self._parts = parts
        self._config = config
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._run: Any = torch.compile(parts.network) if config.use_compile else parts.network
        self._lora_cameras: _lora.CameraEmbedding | None = None
        self.schedule = parts.schedule
        self.camera_dim = _cameras.NUM_FEATURES
        self.cameras: CameraDistribution | None = parts.card.cameras
        self.background: BackgroundDistribution | None = parts.card.background
        self.size_px = config.image_px or parts.size_px
        side, rest = divmod(self.size_px, parts.space.factor)
        if rest or side % self._size_multiple:
            step = parts.space.factor * self._size_multiple
            raise ValueError(f"prior.image_px: got {self.size_px}; must be a multiple of {step}")
        self.latent_shape = (parts.space.channels, side, side)

    def components(self) -> dict[str, list[nn.Module]]:
        """What the prior is made of, for counts of parameters and bytes."""
        parts = self._parts
        found = {"network": [parts.network], "vae": parts.space.modules, "text": parts.text.modules}
        return {name: modules for name, modules in found.items() if modules}

    def idle(self) -> list[nn.Module]:
        """What stays on the CPU while a step runs."""
        return (
            [*self._parts.text.modules, *self._parts.space.idle] if self._config.use_offload else []
        )

    def blank_rows(self, count: int) -> ConditionRows:
        """Rows of the right shapes on the prior's device, of no meaning: for estimates."""
        text = self._parts.text
        tokens = torch.zeros(count, text.max_tokens, text.token_dim, device=self._device)
        pooled = None
        if text.pooled_dim is not None:
            pooled = torch.zeros(count, text.pooled_dim, device=self._device)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=self._device)
        embedding = TextEmbedding(tokens, mask, pooled, text.encoder_id)
        return ConditionRows(embedding, self._camera_rows(None, count))

    @property
    def _takes_cameras(self) -> bool:
        """Whether the network is told cameras."""
        return False

    def _camera_rows(self, cameras: CameraBatch | None, num_rows: int) -> Tensor | None:
        """What the network is told of the cameras, scene-major; None where it has no input."""
        return None

    def _lora_features(self, cameras: CameraBatch) -> Tensor:
        """What a LoRA copy is told of the cameras [N, camera_dim]."""
        return _cameras.camera_features(cameras)

    @abstractmethod
    def _call(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor:
        """The network's output for some rows, of which x_t is in the configured precision."""

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor:
        """Images in [0, 1] of any size -> latents [N, C, h, w]; the mean of a VAE's posterior."""
        images = images.to(self._device, torch.float32)
        size = (self.size_px, self.size_px)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self._parts.space.encode(images * 2 - 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]:
        """Latents -> images in [0, 1]; without gradient."""
        return (self._parts.space.decode(latents) / 2 + 0.5).clamp(0, 1)

    def condition(self, texts: Sequence[str], cameras: CameraBatch | None) -> Condition:
        """B texts and [B, V] cameras -> B * V scene-major rows; equal captions are encoded once.

        Raises: ValueError for another number of scenes, or of views than the network takes.
        """
        num_views = self._check_views(texts, cameras)
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
        return replace(found, cameras=self._lora_features(cameras).to(self._device))

    def _check_views(self, texts: Sequence[str], cameras: CameraBatch | None) -> int:
        num_scenes, num_views = len(texts), self.num_views
        if cameras is not None:
            num_scenes, num_views = cameras.azimuth_deg.shape
        if num_scenes != len(texts):
            raise ValueError(f"got {len(texts)} texts and cameras of {num_scenes} scenes")
        if num_views % self.num_views:
            raise ValueError(
                f"got {num_views} views of a scene; the prior sees {self.num_views} together: set "
                f"views_per_prompt to a multiple"
            )
        return num_views

    def _view_condition(
        self, texts: Sequence[str], cameras: CameraBatch, features: Tensor | None
    ) -> Condition:
        """Captions that end in view words, each text encoded once for every class that occurs."""
        config, card = self._config, self._parts.card
        weights = _views.hard(cameras, card.front_deg, card.overhead_deg)
        if config.blend_view_words:
            weights = _views.blended(cameras, card.overhead_deg)
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
        weights = _views.negative_weights(cameras, card.overhead_deg).to(self._device)
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
        embed_at = None if self._takes_cameras else self._time_layer
        network, trained = _lora.lora_network(self._parts.network, rank, camera_dim, embed_at)
        twin = copy.copy(self)
        twin._parts, twin._run = replace(self._parts, network=network), network
        twin._lora_cameras = trained["cameras"] if embed_at else None  # type: ignore[assignment]
        run: Callable[[Tensor, Tensor, ConditionRows], Tensor] = twin._network

        def call(x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
            if rows.cameras is None:
                rows = replace(rows, cameras=x_t.new_zeros(len(x_t), camera_dim))
            return run(x_t.float(), t, rows)

        return _lora.LoraCopy(call, self._parts.prediction, self.schedule, trained)

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return per_row(self.schedule.alpha(t), like), per_row(self.schedule.sigma(t), like)

    def _network(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        """The network's own output, in chunks of whole groups of views, as float32."""
        views = self.num_views
        if len(x_t) % views:
            raise ValueError(f"got {len(x_t)} rows; the prior sees {views} views together")
        size = max(self._config.chunk_size // views, 1) * views
        size = size if self._config.chunk_size else len(x_t)
        chunks = [slice(start, start + size) for start in range(0, len(x_t), size)]
        return torch.cat([self._chunk(x_t[part], t[part], rows[part]) for part in chunks])

    def _chunk(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        if self._lora_cameras is not None:
            self._lora_cameras.now = rows.cameras
            rows = replace(rows, cameras=self._camera_rows(None, len(x_t)))
        with precision(self._config, self._device):
            output = self._call(x_t.to(self._dtype), t, rows)
        return output[:, : len(x_t[0])].float()  # more channels are a learned variance

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
        eta = 0, which for straight paths is Euler's method. Guidance acts on the network's output,
        which stays exact where alpha is near 0.
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
            if parts.space.is_pixels:
                clean = clean.clamp(-1, 1)
            eps = (x_t - alpha * clean) / sigma
            if following > 0:
                alpha, sigma = self._alpha_sigma(following.expand(count), x_t)
                x_t = alpha * clean + sigma * eps
        return self.decode(clean)
