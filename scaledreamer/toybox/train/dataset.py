"""Images for the embedded models: every prompt of ToyBox, seen once in a while from anywhere.

python -m scaledreamer.toybox.train.dataset --count 48000

Stored in chunks (safetensors + the prompts as JSON), so an interrupted run continues. Foregrounds
are premultiplied by their coverage: the background is drawn anew each time an image is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from scaledreamer.cameras import CameraDistribution, orbit
from scaledreamer.interfaces import BackgroundDistribution, CameraBatch
from scaledreamer.priors import _views
from scaledreamer.storage import (
    atomic_write,
    cache_folder,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    write_json,
)
from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.render import Look, render

CHUNK = 2000
FORM_SHARES = {"plain": 0.08, "with": 0.24, "wearing": 0.12, "on top of": 0.24, "next to": 0.32}
VIEW_WORD_SHARE = 0.5
FRONT_DEG, OVERHEAD_DEG = 45.0, 32.0
"""Half-width of the sectors called front and back; elevation above which a view is overhead."""
CAMERAS = CameraDistribution()
BACKGROUND = BackgroundDistribution()


@cache
def _prompts_by_form() -> dict[str, list[str]]:
    forms: dict[str, list[str]] = {form: [] for form in FORM_SHARES}
    for split in grammar.SPLITS:
        for prompt in grammar.prompts(split):
            forms[grammar.form_of(grammar.parse(prompt))].append(prompt)
    return forms


def draw_prompts(count: int, generator: torch.Generator) -> list[str]:
    """Prompts of all splits, balanced over the caption forms."""
    forms = _prompts_by_form()
    names = list(FORM_SHARES)
    which = torch.multinomial(
        torch.tensor(list(FORM_SHARES.values())), count, replacement=True, generator=generator
    )
    picks = torch.rand(count, generator=generator)
    return [
        forms[names[form]][int(pick * len(forms[names[form]]))]
        for form, pick in zip(which.tolist(), picks.tolist(), strict=True)
    ]


def render_chunk(count: int, size_px: int, seed: int) -> tuple[dict[str, Tensor], list[str]]:
    generator = torch.Generator().manual_seed(seed)
    prompts = draw_prompts(count, generator)
    draw = torch.rand(3, count, 1, generator=generator)
    spans = [(0.0, 360.0), CAMERAS.elevation_deg, CAMERAS.distance]
    azimuth, elevation, distance = (
        lo + (hi - lo) * u for (lo, hi), u in zip(spans, draw, strict=True)
    )
    fov = torch.full_like(azimuth, CAMERAS.fov_deg[0])
    cameras = orbit(azimuth, elevation, distance, fov)
    scenes = [grammar.parse(prompt) for prompt in prompts]
    views = render(scenes, cameras, size_px, background=0.0, look=Look.drawn(count, generator))
    rgba = torch.cat((views.rgb[:, 0], views.opacity), dim=1)
    tensors = {
        "rgba": (rgba * 255).round().to(torch.uint8),
        "azimuth_deg": azimuth[:, 0],
        "elevation_deg": elevation[:, 0],
        "distance": distance[:, 0],
    }
    return tensors, prompts


@dataclass(frozen=True)
class Images:
    """The whole set in memory."""

    rgba: Tensor
    """[N, 4, S, S] uint8, premultiplied."""
    azimuth_deg: Tensor
    elevation_deg: Tensor
    distance: Tensor
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def cameras(self) -> CameraBatch:
        """[N, 1]."""
        columns = (self.azimuth_deg, self.elevation_deg, self.distance)
        fov = torch.full_like(self.distance, CAMERAS.fov_deg[0])
        return orbit(*(column[:, None] for column in (*columns, fov)))

    @staticmethod
    def load(folder: Path) -> Images:
        """Raises: ValueError when the folder holds no chunk."""
        chunks = sorted(folder.glob("chunk_*.safetensors"))
        if not chunks:
            raise ValueError(f"{folder}: no images; run scaledreamer.toybox.train.dataset first")
        tensors = [load_tensors(chunk) for chunk in chunks]
        prompts = [
            text for chunk in chunks for text in json.loads(chunk.with_suffix(".json").read_text())
        ]
        merged = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
        return Images(**merged, prompts=prompts)

    def on_background(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[N, 3, S, S] float in [0, 1] on freshly drawn solid backgrounds."""
        rgba = self.rgba[rows].float() / 255
        span = BACKGROUND.high - BACKGROUND.low
        colour = BACKGROUND.low + span * torch.rand(len(rows), 3, generator=generator)
        colour[torch.rand(len(rows), generator=generator) < BACKGROUND.white_probability] = 1.0
        return rgba[:, :3] + (1 - rgba[:, 3:]) * colour[:, :, None, None]

    def captions(self, rows: Tensor, generator: torch.Generator) -> list[str]:
        """The prompts, neighbours in either order, half of them with view words."""
        draws = torch.rand(2, len(rows), generator=generator).tolist()
        classes = _views.hard(self.cameras()[rows], FRONT_DEG, OVERHEAD_DEG).argmax(dim=1)
        captions = []
        for row, view, name_view, turn in zip(rows.tolist(), classes.tolist(), *draws, strict=True):
            text = self.prompts[row]
            text = grammar.turned_round(text) if turn < 0.5 else text
            if name_view < VIEW_WORD_SHARE:
                text += f", {_views.CLASSES[view]} view"
            captions.append(text)
        return captions


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render the images of the embedded models.")
    parser.add_argument("--output", type=Path, default=cache_folder("toybox/images"))
    parser.add_argument("--count", type=int, default=48_000)
    parser.add_argument("--size-px", type=int, default=32)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parser.add_argument("--workers", type=int, default=workers, help="processes")
    arguments = parser.parse_args(argv)
    stamp, path = _stamp(arguments.size_px), arguments.output / "images.json"
    is_used = any(arguments.output.glob("chunk_*"))
    if is_used and not (path.exists() and read_json(path) == stamp):
        parser.error(f"{arguments.output} holds images of another world; name another --output")
    write_json(path, stamp)
    chunks = range(-(-arguments.count // CHUNK))
    work = partial(write_chunk, arguments.output, CHUNK, arguments.size_px)
    with ExitStack() as stack:
        spread = map
        if arguments.workers > 1:
            pool = ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn"))
            spread = stack.enter_context(pool).map
        for _ in track(spread(work, chunks), description="rendering", total=len(chunks)):
            pass


def _stamp(size_px: int) -> dict[str, object]:
    """What all chunks of a folder have in common."""
    files = sorted(Path(grammar.__file__).parent.glob("*.*"))
    world = "".join(sha256_file(file) for file in files if file.suffix in (".py", ".json"))
    digest = hashlib.sha256(world.encode()).hexdigest()
    return {"world": digest, "size_px": size_px, "chunk": CHUNK}


def write_chunk(folder: Path, count: int, size_px: int, index: int) -> None:
    """Renders one chunk on one thread, unless the folder has it."""
    path = folder / f"chunk_{index:04d}.safetensors"
    if path.exists():
        return
    torch.set_num_threads(1)
    tensors, prompts = render_chunk(count, size_px, seed=index)
    with atomic_write(path.with_suffix(".json")) as file:
        json.dump(prompts, file)
    save_tensors(path, tensors)


if __name__ == "__main__":
    main()
