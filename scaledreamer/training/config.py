"""The whole configuration of a training run."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from scaledreamer.cameras import CameraDistribution
from scaledreamer.config import Component, Constant, Linear, Schedule, component_module
from scaledreamer.interfaces import BackgroundDistribution
from scaledreamer.rendering.volume import RenderConfig
from scaledreamer.training.optimizer import OptimizerConfig
from scaledreamer.training.regularizers import REGULARIZERS

GENERATORS = "scaledreamer.generators"
PRIORS = "scaledreamer.priors"
DISTILLERS = "scaledreamer.distillation"


def _component(package: str, name: str, **fields: Any) -> Callable[[], Component]:
    return lambda: Component(name, component_module(package, name).Config(**fields))


def _require_positive(where: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            key = f"{where}.{name}" if where else name
            raise ValueError(f"{key}: got {value}; must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints; one more is written at the end and on Ctrl-C."""
    keep_last: int = 2
    """How many stay on disk."""

    def __post_init__(self) -> None:
        _require_positive("checkpoints", every=self.every, keep_last=self.keep_last)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    every: int = 20
    """Steps over which scalars are averaged into one record."""
    image_every: int = 500
    """Steps between image grids."""
    image_px: int = 64
    """Size of a grid's images."""
    image_prompts: tuple[str, ...] = ()
    """Prompts of the grid's rows; empty: the first four of the corpus."""
    use_tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""

    def __post_init__(self) -> None:
        _require_positive(
            "log", every=self.every, image_every=self.image_every, image_px=self.image_px
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    prompts: str = "toybox:train"
    """Corpus: toybox:<split>, a .txt file (one prompt a line), a .json file (with #name), or
    prompt:<text> for one prompt."""
    output: str = "runs/amortized"
    """Run folder; relative to where the command is started."""
    seed: int = 0
    """Of weights, order and every draw."""
    num_steps: int = 12_000
    """Optimizer steps; a run resumed with more of them goes on."""
    prompts_per_step: int = 4
    """Per process."""
    views_per_prompt: int = 2
    """Per prompt and step."""
    render_px: int = 32
    """Size of the training renders; the prior resizes them to its own."""
    num_points: int = 512
    """Sample points per prompt on which the eikonal loss looks."""
    encoder: str = "toybox:clip"
    """Folder of the generator's text encoder; the prior has its own."""
    generator: Annotated[Component, GENERATORS] = field(
        default_factory=_component(GENERATORS, "hyper_triplane")
    )
    prior: Annotated[Component, PRIORS] = field(default_factory=_component(PRIORS, "unet"))
    distiller: Annotated[Component, DISTILLERS] = field(
        default_factory=_component(
            DISTILLERS,
            "asd",
            guidance_scale=2.0,
            t_min=Linear(0.5, 0.02, 0, 12_000),
            t_max=Linear(0.98, 0.5, 0, 12_000),
        )
    )
    render: RenderConfig = RenderConfig()
    beta: Schedule = Linear(0.1, 0.02, 0, 6000)
    """VolSDF's softness of the surface, in metres."""
    cameras: CameraDistribution = CameraDistribution()
    background: BackgroundDistribution | None = BackgroundDistribution()
    """Null: the colours that the generator's own learned background gives."""
    losses: dict[str, Schedule] = field(
        default_factory=lambda: {
            "eikonal": Constant(3.0),
            "sparsity": Constant(0.0),
            "opacity": Constant(0.0),
        }
    )
    """Weights by name: the distiller's (1 when not named), eikonal, sparsity, opacity."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of generator and render (autocast); weights and losses are fp32. The prior has its own."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    num_threads: int | None = None
    """CPU threads of one process; null leaves torch's choice."""

    def __post_init__(self) -> None:
        _require_positive(
            "",
            num_steps=self.num_steps,
            prompts_per_step=self.prompts_per_step,
            views_per_prompt=self.views_per_prompt,
            render_px=self.render_px,
            num_points=self.num_points,
            num_threads=1 if self.num_threads is None else self.num_threads,
        )
        ends = (
            (self.beta.start, self.beta.end) if isinstance(self.beta, Linear) else (self.beta(0),)
        )
        for end in ends:
            if not 0 < end < math.inf:
                raise ValueError(f"beta: got {end}; must be positive metres, also where it ends")
        self._check_losses()

    def _check_losses(self) -> None:
        """A distiller of a dotted name may have losses of any name, which the first step checks."""
        if "." in self.distiller.name:
            return
        own = {"lora"} if self.distiller.name == "vsd" else set[str]()
        known = sorted({self.distiller.name, *own, *REGULARIZERS})
        for name in self.losses:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
                raise ValueError(
                    f"losses.{name}: no such loss with distiller {self.distiller.name}; {hint}"
                )


def cut_schedules(config: TrainConfig) -> list[str]:
    """Keys of the schedules that would end only after the last step."""
    return [key for key, end in _schedule_ends(config, "") if end > config.num_steps]


def _schedule_ends(value: Any, where: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Linear):
        yield where, value.to_step
    elif isinstance(value, Component):
        yield from _schedule_ends(value.config, where)
    else:
        fields = value if isinstance(value, dict) else {}
        if dataclasses.is_dataclass(value):
            fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        for name, part in fields.items():
            yield from _schedule_ends(part, f"{where}.{name}" if where else name)
