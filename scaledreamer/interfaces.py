"""What crosses folders: dataclasses and protocols.

Letters: B prompts, V views per prompt, R rays, S samples per ray, H W C image, N rows or points,
L D text tokens and width, P pooled width, Z latent width, F features.
World: right-handed, z up, front faces +x, scenes inside [-1, 1]^3, 1 unit = 1 m. Angles in degrees.
Images: rgb in [0, 1], sRGB-encoded, channels first, row 0 on top.
`t` is a diffusion time, a fraction in (0, 1]; `tdist` is a distance along a ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scaledreamer.rng import StepRng

DensityKind = Literal["sdf", "density"]


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded texts. `encoder_id` names the encoder that made them."""

    tokens: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    """True where a token is real (start, words, end), False at padding."""
    pooled: Float[Tensor, "B P"] | None
    encoder_id: str

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor | slice) -> TextEmbedding:
        pooled = None if self.pooled is None else self.pooled[rows]
        return replace(self, tokens=self.tokens[rows], mask=self.mask[rows], pooled=pooled)

    def to(self, device: torch.device | str) -> TextEmbedding:
        pooled = None if self.pooled is None else self.pooled.to(device)
        return replace(
            self, tokens=self.tokens.to(device), mask=self.mask.to(device), pooled=pooled
        )

    def mixed(self, rows: Int[Tensor, "N K"], weights: Float[Tensor, "N K"]) -> TextEmbedding:
        """N texts, each a sum of K of these by weight; where one weighs 1 it is that text."""
        chosen = rows.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0]
        if bool((weights.amax(dim=1) == 1).all()):
            return self[chosen]
        tokens = torch.einsum("nk,nkld->nld", weights.to(self.tokens), self.tokens[rows])
        mask = (self.mask[rows] & (weights > 0)[..., None]).any(dim=1)
        pooled = self.pooled
        if pooled is not None:
            pooled = torch.einsum("nk,nkp->np", weights.to(pooled), pooled[rows])
        return replace(self, tokens=tokens, mask=mask, pooled=pooled)

    @staticmethod
    def cat(parts: Sequence[TextEmbedding]) -> TextEmbedding:
        ids = {part.encoder_id for part in parts}
        if len(ids) != 1:
            raise ValueError(f"got embeddings of several encoders {sorted(ids)}; encode with one")
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextEmbedding(
            tokens=torch.cat([part.tokens for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            pooled=torch.cat(pooled) if len(pooled) == len(parts) else None,
            encoder_id=parts[0].encoder_id,
        )


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen text encoder."""

    encoder_id: str
    """Name plus content hash; stored in checkpoints and compared on load."""
    token_dim: int
    pooled_dim: int | None

    def __call__(self, texts: Sequence[str]) -> TextEmbedding: ...

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that the vocabulary does not hold (empty for subword encoders)."""
        ...


@runtime_checkable
class ImageTextScorer(Protocol):
    """A frozen CLIP-like judge."""

    def image_features(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N F"]:
        """Unit-norm features of images in [0, 1]; resizing is the scorer's affair."""
        ...

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "N F"]:
        """Unit-norm features of texts."""
        ...


@dataclass(frozen=True)
class PromptBatch:
    """What the loader yields: one step's prompts of this process."""

    ids: list[str]
    texts: list[str]
    sample_index: Tensor
    """[B] int64: position in the endless stream of samples over all processes; keys the rng."""


@dataclass(frozen=True)
class CameraBatch:
    """Pinhole cameras. OpenGL axes: x right, y up, looking along -z."""

    c2w: Float[Tensor, "B V 4 4"]
    fov_deg: Float[Tensor, "B V"]
    """Vertical field of view."""
    azimuth_deg: Float[Tensor, "B V"]
    """0 sees the front (+x); counter-clockwise from above."""
    elevation_deg: Float[Tensor, "B V"]
    distance: Float[Tensor, "B V"]
    """From the world's origin, which every camera looks at."""

    def to(self, device: torch.device | str) -> CameraBatch:
        return CameraBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, scenes: Tensor | slice) -> CameraBatch:
        """The same views of some scenes (indexes B)."""
        return CameraBatch(**{f.name: getattr(self, f.name)[scenes] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class BackgroundDistribution:
    """One solid colour per scene and step; a prior's card stores the one it was trained with."""

    white_probability: float = 0.4
    """Chance of pure white."""
    low: float = 0.0
    """Smallest channel of the other colours, which are uniform in [low, high]^3."""
    high: float = 1.0
    """Largest channel of the other colours."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.white_probability <= 1.0:
            raise ValueError(
                f"background.white_probability: got {self.white_probability}; must lie in [0, 1]"
            )
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(
                f"background.low: got [{self.low}, {self.high}]; must be a range within [0, 1]"
            )

    def sample(self, rng: StepRng) -> Float[Tensor, "B 3"]:
        """sRGB colours for the samples of `rng`, on its device."""
        colours = self.low + (self.high - self.low) * rng.uniform("background/colour", 3)
        is_white = rng.uniform("background/white", 1) < self.white_probability
        return torch.where(is_white, 1.0, colours)


@dataclass(frozen=True)
class MLPWeights:
    """A per-scene two-layer-or-deeper MLP: x @ weight + bias, ReLU between layers.

    `weights[i]` is [B, in, out], `biases[i]` is [B, out].
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


@dataclass(frozen=True)
class TriplaneStructure:
    """Plain tensors of a triplane field, for a fused kernel.

    Planes lie in (x, y), (x, z), (y, z), each sampled bilinearly with `align_corners=False` and
    border padding; the first axis of a pair runs along a plane's width (last index R), the second
    along its height. The three feature vectors are summed and fed to both decoders.
    sdf = sdf_scale * decoder + (|x| - sphere_radius); rgb = sigmoid(decoder). A field of kind
    "density" has density = softplus(decoder + (sphere_radius - |x|) / sdf_scale), 1/m.
    """

    planes: Float[Tensor, "B 3 R R C"]
    sdf_decoder: MLPWeights
    colour_decoder: MLPWeights
    sdf_scale: float
    sphere_radius: float
    density_kind: DensityKind = "sdf"


@runtime_checkable
class Field(Protocol):
    """A 3D field over B scenes."""

    num_scenes: int

    @property
    def density_kind(self) -> DensityKind: ...

    def geometry(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
        """Signed distance (negative inside) or volume density, by `density_kind`."""
        ...

    def geometry_and_colour(
        self, points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]: ...

    def background(self, directions: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"] | None:
        """Colour seen along unit directions that miss the scene, or None when not learned."""
        ...

    @property
    def structure(self) -> TriplaneStructure | None:
        """Plain tensors for a fused kernel, or None when there is none for this field."""
        ...


@runtime_checkable
class Generator(Protocol):
    """text (and an optional latent [B, Z]) -> Field over B scenes. Also an `nn.Module`."""

    def __call__(self, text: TextEmbedding, latent: Tensor | None = None) -> Field: ...


@dataclass(frozen=True)
class Views:
    """Rendered images of B scenes."""

    rgb: Float[Tensor, "B V 3 H W"]
    opacity: Float[Tensor, "B V H W"]
    depth: Float[Tensor, "B V H W"]
    """Opacity-weighted distance along the unit ray, in metres."""
    normal: Float[Tensor, "B V 3 H W"] | None
    """Opacity-weighted, world frame, outward; None unless asked for."""
    points: Float[Tensor, "B N 3"] | None = None
    """A random subset of the sample positions, for regularizers."""


@dataclass(frozen=True)
class ConditionRows:
    """One condition row per latent: what a prior's network sees beside x_t and t."""

    text: TextEmbedding
    """N rows."""
    cameras: Float[Tensor, "N F"] | None
    """The prior's own camera features; None for a prior without camera input."""

    def __len__(self) -> int:
        return len(self.text)

    @staticmethod
    def cat(parts: Sequence[ConditionRows]) -> ConditionRows:
        cameras = [part.cameras for part in parts if part.cameras is not None]
        return ConditionRows(
            text=TextEmbedding.cat([part.text for part in parts]),
            cameras=torch.cat(cameras) if len(cameras) == len(parts) else None,
        )

    def __getitem__(self, rows: Tensor | slice) -> ConditionRows:
        cameras = None if self.cameras is None else self.cameras[rows]
        return ConditionRows(text=self.text[rows], cameras=cameras)


@dataclass(frozen=True)
class Condition:
    """Condition of N = B * V latents, scene-major (latent b * V + v)."""

    positive: ConditionRows
    null: ConditionRows
    negatives: tuple[ConditionRows, ...] = ()
    """What each latent should not show, for perp-neg; N rows each."""
    negative_weights: Float[Tensor, "K N"] | None = None
    """Weight of each negative for each latent, at most 0; given where there are negatives."""
    bad: ConditionRows | None = None
    """What no image should be ("blurry, deformed"), where the prior is given such a text."""
    cameras: Float[Tensor, "N F"] | None = None
    """Features for a LoRA copy, given whenever cameras were, whatever the prior itself sees."""


@runtime_checkable
class NoiseSchedule(Protocol):
    """x_t = alpha(t) x_0 + sigma(t) eps with t a fraction in (0, 1]."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...


@runtime_checkable
class Prior(Protocol):
    """A frozen 2D diffusion model behind one call."""

    schedule: NoiseSchedule

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor:
        """Images in [0, 1] of any size -> what the network denoises, differentiably."""
        ...

    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]: ...

    def condition(self, texts: Sequence[str], cameras: CameraBatch | None) -> Condition:
        """B texts and [B, V] cameras -> B * V rows; without cameras V is 1."""
        ...

    def predict_noise(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor: ...


@runtime_checkable
class LoraCopy(Protocol):
    """A prior fine-tuned by low-rank additions. Also an `nn.Module`, whose state they alone are.

    `rows.cameras` holds `Condition.cameras`; zeros, or None, where a camera is dropped.
    """

    def predict_noise(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor:
        """As the prior's, without gradient; equal to it before any training."""
        ...

    def denoising_loss(
        self, clean: Tensor, noise: Tensor, t: Float[Tensor, "N"], rows: ConditionRows
    ) -> Float[Tensor, "N"]:
        """Mean squared error of the network's output for each row, in its own prediction kind."""
        ...


@runtime_checkable
class LoraPrior(Prior, Protocol):
    """A prior that can be fine-tuned beside itself, for VSD."""

    camera_dim: int
    """Width of `Condition.cameras`."""

    def lora_copy(self, rank: int, camera_dim: int) -> LoraCopy:
        """A copy on the prior's own frozen weights; the prior's predictions stay as they are."""
        ...


@dataclass(frozen=True)
class Guidance:
    """What a distiller returns."""

    losses: Mapping[str, Tensor]
    """Named scalars; the loop weighs and adds them."""
    stats: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Detached scalars for the log."""


@runtime_checkable
class Distiller(Protocol):
    """latents [B * V, ...] -> Guidance, on the Prior contract alone.

    One that trains something is an `nn.Module`, whose `parameter_groups()` may give groups for the
    optimizer (torch's dictionaries) with rates of their own.
    """

    def __call__(
        self, latents: Tensor, condition: Condition, step: int, rng: StepRng
    ) -> Guidance: ...
