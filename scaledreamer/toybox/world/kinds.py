"""The object kinds: one short definition each, from signed-distance primitives.

Front faces +x, y points right as seen from the front, z up. Sizes are free: a scene scales and
places its objects. A second colour goes to the part that the vocabulary names, which is chosen to
be seen from every side; small details have fixed colours and tell front from back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from scaledreamer.toybox.world.primitives import (
    ACCENT,
    MAIN,
    Part,
    ball,
    blob,
    box,
    cone,
    ring,
    torus,
)

Parts = list[Part]


def mug() -> Parts:
    return [
        ring(MAIN, (0, 0, 0), 0.42, 0.05, 0.48),
        ring(ACCENT, (0, 0, 0), 0.36, 0.03, 0.47),
        ring(ACCENT, (0, 0, 0.43), 0.41, 0.08, 0.08),
        cone(ACCENT, (0, 0, -0.40), (0.38, 0.38), 0.05),
        cone(MAIN, (0, 0, -0.455), (0.44, 0.44), 0.03),
        torus(ACCENT, (0, 0.58, 0), 0.25, 0.09, (1, 0, 0)),
    ]


def chair() -> Parts:
    legs = [
        box(MAIN, (x, y, -0.45), (0.06, 0.06, 0.40)) for x in (-0.34, 0.34) for y in (-0.34, 0.34)
    ]
    posts = [box(MAIN, (-0.36, y, 0.45), (0.06, 0.06, 0.45)) for y in (-0.34, 0.34)]
    return [
        box(ACCENT, (0, 0, 0), (0.44, 0.44, 0.11)),
        box(MAIN, (-0.36, 0, 0.74), (0.06, 0.40, 0.18)),
        *posts,
        *legs,
    ]


def table() -> Parts:
    legs = [
        box(ACCENT, (x, y, -0.30), (0.08, 0.08, 0.32)) for x in (-0.5, 0.5) for y in (-0.5, 0.5)
    ]
    return [box(MAIN, (0, 0, 0.08), (0.68, 0.68, 0.09)), *legs]


def lamp() -> Parts:
    return [
        cone(MAIN, (0, 0, -0.72), (0.36, 0.30), 0.08),
        cone(MAIN, (0, 0, -0.3), (0.075, 0.075), 0.5),
        cone(ACCENT, (0, 0, 0.40), (0.56, 0.30), 0.34),
        ball("yellow", (0, 0, 0.06), 0.14),
    ]


def house() -> Parts:
    return [
        box(MAIN, (0, 0, -0.1), (0.52, 0.46, 0.40)),
        box(ACCENT, (0, 0, 0.30), (0.58, 0.40, 0.40), turn=("x", 45)),
        box("black", (0.52, 0.0, -0.28), (0.03, 0.14, 0.22)),
        box("white", (0.52, 0.28, 0.02), (0.03, 0.09, 0.09)),
        box("white", (0.52, -0.28, 0.02), (0.03, 0.09, 0.09)),
        box("brown", (-0.30, 0.22, 0.72), (0.09, 0.09, 0.20)),
    ]


def tree() -> Parts:
    return [
        cone(ACCENT, (0, 0, -0.55), (0.18, 0.13), 0.40),
        ball(MAIN, (0, 0, 0.28), 0.46),
        ball(MAIN, (0.06, -0.30, 0.02), 0.30),
        ball(MAIN, (-0.05, 0.30, 0.05), 0.30),
        ball(MAIN, (0.26, 0.04, 0.02), 0.26),
        ball("red", (0.43, 0.14, 0.38), 0.08),
        ball("red", (0.42, -0.20, 0.24), 0.08),
    ]


def mushroom() -> Parts:
    spots = [(0.42, 0.14, 0.33), (0.30, -0.30, 0.36), (0.22, 0.12, 0.54), (0.10, 0.46, 0.36)]
    return [
        cone(ACCENT, (0, 0, -0.34), (0.24, 0.18), 0.40),
        cone(MAIN, (0, 0, 0.13), (0.62, 0.58), 0.08),
        blob(MAIN, (0, 0, 0.16), (0, 0, 0.42), (0.50, 0.28)),
        *[ball("white", spot, 0.09) for spot in spots],
    ]


def snowman() -> Parts:
    return [
        ball(MAIN, (0, 0, -0.50), 0.42),
        ball(MAIN, (0, 0, 0.06), 0.32),
        ball(MAIN, (0, 0, 0.52), 0.25),
        torus(ACCENT, (0, 0, 0.31), 0.22, 0.10),
        blob(ACCENT, (0.24, 0.16, 0.28), (0.34, 0.20, 0.02), (0.08, 0.08)),
        ball("black", (0.22, 0.09, 0.62), 0.05),
        ball("black", (0.22, -0.09, 0.62), 0.05),
        blob("orange", (0.22, 0, 0.52), (0.48, 0, 0.50), (0.06, 0.02)),
        ball("black", (0.32, 0, 0.08), 0.05),
        ball("black", (0.40, 0, -0.40), 0.05),
    ]


def robot() -> Parts:
    arms = [box(ACCENT, (0.03, y, -0.02), (0.12, 0.11, 0.34)) for y in (-0.47, 0.47)]
    legs = [box(MAIN, (0, y, -0.62), (0.13, 0.12, 0.26)) for y in (-0.18, 0.18)]
    eyes = [ball("yellow", (0.25, y, 0.62), 0.08) for y in (-0.13, 0.13)]
    return [
        box(MAIN, (0, 0, 0), (0.24, 0.36, 0.40)),
        box(MAIN, (0, 0, 0.60), (0.24, 0.28, 0.20)),
        box("white", (0.24, 0, 0.08), (0.03, 0.20, 0.14)),
        *arms,
        *legs,
        *eyes,
    ]


def rocket() -> Parts:
    fins = [
        box(ACCENT, (0.34 * x, 0.34 * y, -0.56), (0.26, 0.055, 0.28), 0.02, ("z", angle))
        for x, y, angle in ((1, 0, 0), (-1, 0, 0), (0, 1, 90), (0, -1, 90))
    ]
    return [
        cone(MAIN, (0, 0, -0.20), (0.26, 0.26), 0.52),
        blob(MAIN, (0, 0, 0.32), (0, 0, 0.76), (0.26, 0.05)),
        ball("white", (0.20, 0, 0.22), 0.13),
        *fins,
    ]


def car() -> Parts:
    wheels = [
        cone(ACCENT, (x, y, -0.20), (0.22, 0.22), 0.11, (0, 1, 0))
        for x in (-0.48, 0.48)
        for y in (-0.38, 0.38)
    ]
    return [
        box(MAIN, (0, 0, 0), (0.82, 0.38, 0.18), 0.08),
        box(MAIN, (-0.14, 0, 0.30), (0.42, 0.33, 0.18), 0.08),
        box("black", (0.23, 0, 0.30), (0.07, 0.26, 0.11)),
        box("black", (-0.14, 0, 0.31), (0.26, 0.345, 0.09)),
        ball("yellow", (0.80, 0.24, 0.02), 0.09),
        ball("yellow", (0.80, -0.24, 0.02), 0.09),
        *wheels,
    ]


def boat() -> Parts:
    return [
        blob(MAIN, (-0.42, 0, -0.42), (0.62, 0, -0.36), (0.27, 0.12)),
        box(MAIN, (-0.10, 0, -0.30), (0.60, 0.28, 0.12), 0.06),
        box("white", (-0.44, 0, -0.12), (0.15, 0.16, 0.12)),
        cone("brown", (0.06, 0, 0.25), (0.05, 0.04), 0.56),
        box(ACCENT, (0.02, 0, 0.16), (0.44, 0.06, 0.22), 0.02, ("z", 30)),
        box(ACCENT, (0.04, 0, 0.46), (0.30, 0.06, 0.22), 0.02, ("z", 30)),
        box(ACCENT, (0.06, 0, 0.72), (0.15, 0.06, 0.14), 0.02, ("z", 30)),
    ]


def duck() -> Parts:
    return [
        blob(MAIN, (0.12, 0, -0.22), (-0.30, 0, -0.16), (0.40, 0.28)),
        blob(MAIN, (-0.45, 0, -0.06), (-0.68, 0, 0.16), (0.16, 0.06)),
        ball(MAIN, (0.30, 0, 0.36), 0.27),
        blob(MAIN, (0.26, 0, 0.0), (0.30, 0, 0.3), (0.2, 0.2)),
        blob("orange", (0.52, 0, 0.32), (0.72, 0, 0.28), (0.11, 0.07)),
        ball("black", (0.48, 0.15, 0.45), 0.055),
        ball("black", (0.48, -0.15, 0.45), 0.055),
        blob(ACCENT, (0.08, 0.40, -0.10), (-0.42, 0.46, 0.02), (0.16, 0.08)),
        blob(ACCENT, (0.08, -0.40, -0.10), (-0.42, -0.46, 0.02), (0.16, 0.08)),
    ]


def fish() -> Parts:
    return [
        blob(MAIN, (0.24, 0, 0), (-0.38, 0, 0), (0.36, 0.14)),
        box(ACCENT, (-0.66, 0, 0.14), (0.12, 0.05, 0.24), 0.02, ("y", 35)),
        box(ACCENT, (-0.66, 0, -0.14), (0.12, 0.05, 0.24), 0.02, ("y", -35)),
        box(ACCENT, (0.04, 0, 0.40), (0.26, 0.06, 0.16), 0.03, ("y", 15)),
        box(ACCENT, (0.10, 0.42, -0.14), (0.16, 0.18, 0.05), 0.03, ("x", -30)),
        box(ACCENT, (0.10, -0.42, -0.14), (0.16, 0.18, 0.05), 0.03, ("x", 30)),
        ball("white", (0.44, 0.22, 0.12), 0.11),
        ball("white", (0.44, -0.22, 0.12), 0.11),
        ball("black", (0.51, 0.27, 0.14), 0.06),
        ball("black", (0.51, -0.27, 0.14), 0.06),
    ]


def cactus() -> Parts:
    return [
        blob(MAIN, (0, 0, -0.35), (0, 0, 0.55), (0.20, 0.20)),
        blob(MAIN, (0, 0.05, 0.02), (0, 0.42, 0.04), (0.11, 0.11)),
        blob(MAIN, (0, 0.42, 0.04), (0, 0.42, 0.42), (0.11, 0.11)),
        blob(MAIN, (0, -0.05, -0.16), (0, -0.40, -0.14), (0.10, 0.10)),
        blob(MAIN, (0, -0.40, -0.14), (0, -0.40, 0.16), (0.10, 0.10)),
        cone(ACCENT, (0, 0, -0.62), (0.26, 0.38), 0.20),
        ball("pink", (0.16, 0.05, 0.56), 0.09),
        ball("pink", (0.19, -0.05, 0.10), 0.07),
    ]


def cat() -> Parts:
    feet = [(0.30, 0.17), (0.30, -0.17), (-0.36, 0.17), (-0.36, -0.17)]
    ears = [
        cone(MAIN, (0.42, y, 0.60), (0.11, 0.02), 0.13, (0, 0.4 * np.sign(y), 1))
        for y in (-0.16, 0.16)
    ]
    return [
        blob(MAIN, (0.24, 0, -0.10), (-0.32, 0, -0.10), (0.24, 0.24)),
        ball(MAIN, (0.42, 0, 0.30), 0.28),
        *[blob(MAIN, (x, y, -0.2), (x, y, -0.48), (0.11, 0.10)) for x, y in feet],
        *[ball(ACCENT, (x + 0.04, y, -0.58), 0.14) for x, y in feet],
        blob(MAIN, (-0.50, 0, -0.05), (-0.66, 0, 0.50), (0.08, 0.07)),
        *ears,
        ball("yellow", (0.65, 0.11, 0.36), 0.07),
        ball("yellow", (0.65, -0.11, 0.36), 0.07),
        ball("pink", (0.70, 0, 0.25), 0.05),
    ]


def castle() -> Parts:
    corners = [(x, y) for x in (-0.44, 0.44) for y in (-0.44, 0.44)]
    return [
        box(MAIN, (0, 0, -0.30), (0.44, 0.44, 0.32)),
        box(MAIN, (-0.1, 0, 0.16), (0.22, 0.22, 0.34)),
        cone(ACCENT, (-0.1, 0, 0.68), (0.32, 0.02), 0.20),
        *[cone(MAIN, (x, y, -0.18), (0.18, 0.18), 0.46) for x, y in corners],
        *[cone(ACCENT, (x, y, 0.44), (0.24, 0.02), 0.20) for x, y in corners],
        box("black", (0.44, 0, -0.40), (0.03, 0.15, 0.22)),
    ]


def plain_box() -> Parts:
    return [
        box(MAIN, (0, 0, -0.08), (0.52, 0.52, 0.40), 0.03),
        box(ACCENT, (0, 0, 0.40), (0.58, 0.58, 0.13), 0.03),
    ]


def hat(radius: float) -> Parts:
    """A brimmed hat that sits on a head of that radius; its base is at z = 0."""
    return [
        cone("hat", (0, 0, 0.10 * radius), (1.45 * radius, 1.40 * radius), 0.13 * radius),
        cone("hat", (0, 0, 0.75 * radius), (0.90 * radius, 0.80 * radius), 0.65 * radius),
    ]


KINDS: dict[str, Callable[[], Parts]] = {
    "mug": mug,
    "chair": chair,
    "table": table,
    "lamp": lamp,
    "house": house,
    "tree": tree,
    "mushroom": mushroom,
    "snowman": snowman,
    "robot": robot,
    "rocket": rocket,
    "car": car,
    "boat": boat,
    "duck": duck,
    "fish": fish,
    "cactus": cactus,
    "cat": cat,
    "castle": castle,
    "box": plain_box,
}

HAT_SEAT: dict[str, tuple[tuple[float, float, float], float]] = {
    "snowman": ((0, 0, 0.70), 0.21),
    "robot": ((0, 0, 0.79), 0.26),
    "duck": ((0.28, 0, 0.55), 0.23),
    "cactus": ((0, 0, 0.68), 0.20),
    "cat": ((0.38, 0, 0.50), 0.22),
}
"""Where a hat sits on a wearer, and the head's radius there."""


@cache
def parts_of(kind: str) -> tuple[Part, ...]:
    return tuple(KINDS[kind]())
