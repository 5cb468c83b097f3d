"""Prompt -> field -> mesh.

pipe = TextTo3D.from_pretrained()
result = next(pipe.generate("a blue mug with a white handle"))
result.save("mug.glb")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaledreamer import config
from scaledreamer.encoders import clip_text
from scaledreamer.generators import triplane
from scaledreamer.interfaces import CameraBatch, Field, TextEncoder, Views
from scaledreamer.mesh.colour import colour
from scaledreamer.mesh.export import save
from scaledreamer.mesh.isosurface import IsosurfaceConfig, isosurface
from scaledreamer.mesh.surface import Surface
from scaledreamer.rendering.volume import RenderConfig, render
from scaledreamer.rng import StepRng
from scaledreamer.storage import (
    FORMAT,
    load_tensors,
    newest_checkpoint,
    normalise_text,
    prompt_id,
    read_json,
    resolve_folder,
    save_tensors,
    sha256_file,
    verify_files,
    write_json,
)
from scaledreamer.toybox.world import language
from scaledreamer.toybox.world.language import Reading

EXPORTED = ("config.json", "ema.safetensors")
"""What an exported generator consists of, beside its manifest."""
_SCENE_KEYS = ("format", "kind", "encoder", "rendering")
_WEIGHTS = ("ema.safetensors", "model.safetensors")
_RENDERING = RenderConfig(num_stratified=32, num_importance=24)


@dataclass(frozen=True)
class GeneratorFolder:
    """A generator on disk, found and checked against its manifest, but not loaded."""

    path: Path
    weights: Path
    config: Mapping[str, Any]

    @property
    def beta(self) -> float:
        """Softness of the surface that its last training renders had, metres."""
        return float(self.config.get("rendering", {}).get("beta", 0.02))

    @classmethod
    def find(cls, spec: str) -> GeneratorFolder:
        """From a generator or checkpoint folder, a run folder, or `toybox:generator`.

        Of a run it is the newest checkpoint, or with a warning the one before when it is damaged.
        Raises: ValueError when there is none of them, or one that this version does not read.
        """
        folder = resolve_folder(spec)
        if (folder / "config.json").is_file():
            return cls._read(folder)
        found = newest_checkpoint(folder, cls._read)
        if found is None:
            raise ValueError(
                f"checkpoint: got {spec}; expected config.json, or a run's checkpoints, in it"
            )
        return found

    @classmethod
    def _read(cls, folder: Path) -> GeneratorFolder:
        has_manifest = (folder / "manifest.json").is_file()
        if has_manifest:
            verify_files(folder, ("config.json",))
        values = read_json(folder / "config.json")
        kind = values.get("kind") if isinstance(values, dict) else None
        if kind != "generator" or values.get("format") != FORMAT:
            found = f"kind {kind!r}, format {values.get('format')!r}" if kind else "another file"
            raise ValueError(
                f"checkpoint {folder}: config.json is {found}; expected a generator of format "
                f"{FORMAT}"
            )
        for key in ("generator", "encoder"):
            if not isinstance(values.get(key), dict):
                raise ValueError(f"checkpoint {folder}: config.json has no {key!r} section")
        weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
        if not weights:
            raise ValueError(f"checkpoint {folder}: has none of {', '.join(_WEIGHTS)}")
        if has_manifest:
            verify_files(folder, (weights[0].name,))
        return cls(folder, weights[0], values)

    def load(self, encoder: TextEncoder, device: torch.device | str) -> nn.Module:
        """The generator in float32, frozen.

        Raises: ValueError for corrupt or unfitting weights, or another encoder than it was
            trained with.
        """
        trained_with = self.config["encoder"].get("id")
        if encoder.encoder_id != trained_with:
            raise ValueError(
                f"checkpoint {self.path}: trained with text encoder {trained_with}, got "
                f"{encoder.encoder_id}; restore that encoder or train again"
            )
        fields = dict(self.config["generator"])
        module = config.component_module("scaledreamer.generators", str(fields.pop("name", "")))
        settings = config.build(module.Config, fields, where="generator")
        generator = module.create(settings, encoder.token_dim, encoder.pooled_dim)
        tensors = load_tensors(self.weights)
        plain = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        try:
            generator.load_state_dict(plain)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint {self.path}: {self.weights.name} does not fit its config.json "
                f"({str(error).splitlines()[-1].strip()})"
            ) from error
        return generator.float().to(device).eval().requires_grad_(False)

    def export(self, folder: Path, dtype: torch.dtype = torch.float16) -> int:
        """Writes config.json, ema.safetensors and manifest.json; returns the number of weights."""
        weights = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in load_tensors(self.weights).items()
        }
        return _write_generator(folder, self.config, weights)


def _write_generator(folder: Path, values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> int:
    write_json(folder / "config.json", values)
    save_tensors(folder / "ema.safetensors", weights)
    hashes = {name: sha256_file(folder / name) for name in EXPORTED}
    write_json(folder / "manifest.json", {"format": FORMAT, "files": hashes})
    return sum(tensor.numel() for tensor in weights.values())


@dataclass(frozen=True)
class Result:
    """What became of one prompt."""

    prompt: str
    mesh: Surface | None = None
    """None when it failed."""
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage: encode, generate, surface, colour."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """vertices, faces, and the floaters dropped."""
    caption: str = ""
    """What the text encoder was given: the prompt, or ToyBox's words for it."""
    unknown_words: Mapping[str, str | None] = field(default_factory=dict)
    """Words that the encoder does not know, each with the nearest one it does, if any."""

    def save(self, path: Path | str) -> None:
        """Write the mesh as glb, obj, ply or stl, by the suffix."""
        if self.mesh is None:
            raise ValueError(f"no mesh of {self.prompt!r} to save: {self.error}")
        save(self.mesh, path)


class TextTo3D:
    """A text encoder and a generator; call it for fields, or `generate` for meshes."""

    def __init__(
        self,
        encoder: TextEncoder,
        generator: nn.Module,
        device: torch.device | str = "cpu",
        beta: float = 0.02,
        read: Callable[[str], Reading] | None = None,
    ) -> None:
        """`read` puts prompts into the words that the encoder was trained on."""
        self.encoder, self.generator, self.device = encoder, generator, torch.device(device)
        self.beta, self._read = beta, read

    @classmethod
    def from_pretrained(
        cls, folder: str | Path = "toybox:generator", device: torch.device | str = "cpu"
    ) -> TextTo3D:
        """Load a generator folder, a checkpoint folder, or the newest checkpoint of a run.

        Raises: ValueError when it is missing, corrupt, or made for another text encoder.
        """
        return cls.from_folder(GeneratorFolder.find(str(folder)), device)

    @classmethod
    def from_folder(cls, found: GeneratorFolder, device: torch.device | str = "cpu") -> TextTo3D:
        """Load a generator that was found before.

        Raises: ValueError when it is corrupt, or made for another text encoder.
        """
        spec = found.config["encoder"].get("folder", "toybox:clip")
        encoder = clip_text.load(spec, device)
        read = language.read if spec.startswith("toybox:") else None
        return cls(encoder, found.load(encoder, device), device, found.beta, read)

    @torch.no_grad()
    def __call__(self, prompts: str | Sequence[str], seed: int = 0) -> Field:
        """One field over all the prompts as its scenes."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self._field(texts, seed, _Stopwatch(self.device))

    @torch.no_grad()
    def render(
        self, prompts: Sequence[str], cameras: CameraBatch, size_px: int, seed: int = 0
    ) -> Views:
        """Volume-rendered views of B prompts through [B, V] cameras, on white."""
        white = torch.ones(len(prompts), 3, device=self.device)
        field = self(prompts, seed)
        return render(field, cameras.to(self.device), white, _RENDERING, size_px, self.beta)

    def generate(
        self, prompts: str | Sequence[str], resolution: int = 96, seed: int = 0
    ) -> Iterator[Result]:
        """One result per prompt, in order; a prompt that fails does not end the others.

        A prompt's mesh depends on it, `resolution` and `seed` alone, not on its neighbours.
        Raises: ValueError for a resolution outside 16 to 512.
        """
        surfaces = IsosurfaceConfig(resolution=resolution)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return (self._generate_one(text, surfaces, seed) for text in texts)

    @torch.inference_mode()
    def _generate_one(self, text: str, surfaces: IsosurfaceConfig, seed: int) -> Result:
        watch = _Stopwatch(self.device)
        reading = self.reading(text)
        caption, unknown = reading.caption, reading.unknown
        try:
            scene = self._field([text], seed, watch)
            with watch("surface"):
                mesh = isosurface(scene, surfaces, self.device)
            with watch("colour"):
                (coloured,) = colour(scene, mesh, self.device)
        except ValueError as error:
            return Result(text, None, str(error), watch.seconds, {}, caption, unknown)
        counts = {
            "vertices": len(coloured.vertices),
            "faces": len(coloured.faces),
            "floaters_dropped": coloured.num_dropped,
        }
        return Result(text, coloured, None, watch.seconds, counts, caption, unknown)

    def _field(self, texts: Sequence[str], seed: int, watch: _Stopwatch) -> Field:
        for text in texts:
            if not normalise_text(text):
                raise ValueError(f"prompt: got {text!r}; expected some words")
        with watch("encode"):
            captions = [self.reading(text).caption for text in texts]
            embedding = self.encoder(captions).to(self.device)
        with watch("generate"):
            return self.generator(embedding, self._latent(texts, seed))

    def reading(self, text: str) -> Reading:
        """How a prompt is understood: the caption that the encoder gets, and the unknown words."""
        if self._read is not None:
            found = self._read(text)
            unknown = dict.fromkeys(self.encoder.unknown_words(found.caption))
            return replace(found, unknown={**unknown, **found.unknown})
        return Reading(text, None, dict.fromkeys(self.encoder.unknown_words(text)))

    def _latent(self, texts: Sequence[str], seed: int) -> Tensor | None:
        """Noise for generators whose config has a `latent_dim`, keyed by prompt, not by place."""
        width = getattr(getattr(self.generator, "config", None), "latent_dim", 0)
        if not width:
            return None
        keys = torch.tensor([int(prompt_id(text)[:15], 16) for text in texts])
        return StepRng(seed, 0, keys.to(self.device)).normal("generate/latent", width)


def export_scene(
    found: GeneratorFolder, prompt: str, folder: Path, dtype: torch.dtype, seed: int = 0
) -> tuple[int, Reading]:
    """Writes one prompt's field as a generator of its own, `triplane`, to refine or to ship.

    In float32 it renders what the generator renders for the prompt, to the bit. `seed` is of the
    latent, for generators that take one. Returns the number of weights and how the prompt was read.
    Raises: ValueError for an empty prompt, or a field without a structure.
    """
    pipe = TextTo3D.from_folder(found)
    scene = triplane.hold(pipe(prompt, seed))
    kept = {key: found.config[key] for key in _SCENE_KEYS if key in found.config}
    component = config.to_dict(config.Component("triplane", scene.config))
    weights = {name: tensor.to(dtype) for name, tensor in scene.state_dict().items()}
    values = {**kept, "prompt": normalise_text(prompt), "generator": component}
    return _write_generator(folder, values, weights), pipe.reading(prompt)


class _Stopwatch:
    """Seconds per named stage, after the device has finished it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start
