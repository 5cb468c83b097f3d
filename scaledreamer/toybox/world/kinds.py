"""The object kinds by name, and the hat that some of them wear.

A second colour goes to the part that the vocabulary names, which is chosen to be seen from every
side; small details have fixed colours and tell front from back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from scaledreamer.toybox.world import creatures, places, things
from scaledreamer.toybox.world.primitives import Part, Parts, cone

KINDS: dict[str, Callable[[], Parts]] = {
    "mug": things.mug,
    "teapot": things.teapot,
    "chair": things.chair,
    "table": things.table,
    "sofa": things.sofa,
    "bed": things.bed,
    "lamp": things.lamp,
    "box": things.plain_box,
    "umbrella": things.umbrella,
    "guitar": things.guitar,
    "key": things.key,
    "hammer": things.hammer,
    "house": places.house,
    "castle": places.castle,
    "windmill": places.windmill,
    "lighthouse": places.lighthouse,
    "tree": places.tree,
    "flower": places.flower,
    "mushroom": places.mushroom,
    "cactus": places.cactus,
    "car": places.car,
    "train": places.train,
    "boat": places.boat,
    "airplane": places.airplane,
    "helicopter": places.helicopter,
    "rocket": places.rocket,
    "cat": creatures.cat,
    "dog": creatures.dog,
    "rabbit": creatures.rabbit,
    "elephant": creatures.elephant,
    "turtle": creatures.turtle,
    "duck": creatures.duck,
    "penguin": creatures.penguin,
    "fish": creatures.fish,
    "snowman": creatures.snowman,
    "robot": creatures.robot,
}

HAT_SEAT: dict[str, tuple[tuple[float, float, float], float]] = {
    "snowman": ((0, 0, 0.70), 0.21),
    "robot": ((0, 0, 0.79), 0.26),
    "duck": ((0.28, 0, 0.55), 0.23),
    "cactus": ((0, 0, 0.68), 0.20),
    "cat": ((0.38, 0, 0.50), 0.22),
    "dog": ((0.44, 0, 0.54), 0.22),
    "penguin": ((0.0, 0, 0.70), 0.23),
    "elephant": ((0.42, 0, 0.44), 0.24),
}
"""Where a hat sits on a wearer, and the head's radius there."""


def hat(radius: float) -> Parts:
    """A brimmed hat that sits on a head of that radius; its base is at z = 0."""
    return [
        cone("hat", (0, 0, 0.10 * radius), (1.45 * radius, 1.40 * radius), 0.13 * radius),
        cone("hat", (0, 0, 0.75 * radius), (0.90 * radius, 0.80 * radius), 0.65 * radius),
    ]


@cache
def parts_of(kind: str) -> tuple[Part, ...]:
    return tuple(KINDS[kind]())
