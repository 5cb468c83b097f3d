"""Buildings, plants and vehicles, from signed-distance primitives.

Front faces +x, y points right as seen from the front, z up; sizes are free, a scene scales.
"""

from __future__ import annotations

import numpy as np

from scaledreamer.toybox.world.primitives import (
    ACCENT,
    MAIN,
    Part,
    Parts,
    ball,
    blob,
    box,
    cone,
)


def house() -> Parts:
    return [
        box(MAIN, (0, 0, -0.1), (0.52, 0.46, 0.40)),
        box(ACCENT, (0, 0, 0.30), (0.58, 0.40, 0.40), turn=("x", 45)),
        box("black", (0.52, 0.0, -0.28), (0.03, 0.14, 0.22)),
        box("white", (0.52, 0.28, 0.02), (0.03, 0.09, 0.09)),
        box("white", (0.52, -0.28, 0.02), (0.03, 0.09, 0.09)),
        box("brown", (-0.30, 0.22, 0.72), (0.09, 0.09, 0.20)),
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


def windmill() -> Parts:
    blades = [
        box(ACCENT, (0.38, 0, 0.32), (0.05, 0.74, 0.13), 0.02, ("x", angle)) for angle in (45, -45)
    ]
    return [
        cone(MAIN, (-0.05, 0, -0.30), (0.42, 0.26), 0.56),
        cone("brown", (-0.05, 0, 0.42), (0.32, 0.04), 0.18),
        cone("black", (0.28, 0, 0.32), (0.06, 0.06), 0.14, (1, 0, 0)),
        box("black", (0.31, 0, -0.66), (0.06, 0.13, 0.20)),
        *blades,
    ]


def lighthouse() -> Parts:
    def band(low: float, high: float) -> Part:
        radii = tuple(0.375 - 0.113 * (z + 0.84) for z in (low, high))
        return cone(ACCENT, (0, 0, (low + high) / 2), radii, (high - low) / 2)  # type: ignore

    return [
        cone(MAIN, (0, 0, -0.22), (0.36, 0.22), 0.62),
        band(-0.66, -0.38),
        band(-0.06, 0.22),
        cone("black", (0, 0, 0.43), (0.32, 0.32), 0.05),
        cone("yellow", (0, 0, 0.57), (0.17, 0.17), 0.10),
        cone(ACCENT, (0, 0, 0.78), (0.27, 0.03), 0.13),
        box("black", (0.33, 0, -0.70), (0.06, 0.12, 0.14)),
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


def flower() -> Parts:
    around = np.radians(np.arange(0, 360, 60))
    petals = [ball(MAIN, (0.0, 0.32 * np.cos(a), 0.44 + 0.32 * np.sin(a)), 0.20) for a in around]
    return [
        *petals,
        ball("yellow", (0.10, 0, 0.44), 0.20),
        ball("green", (-0.10, 0, 0.44), 0.17),
        cone(ACCENT, (0, 0, -0.42), (0.08, 0.07), 0.50),
        blob(ACCENT, (0, 0.06, -0.56), (0, 0.42, -0.30), (0.08, 0.11)),
        blob(ACCENT, (0, -0.06, -0.64), (0, -0.38, -0.44), (0.08, 0.11)),
    ]


def mushroom() -> Parts:
    spots = [(0.42, 0.14, 0.33), (0.30, -0.30, 0.36), (0.22, 0.12, 0.54), (0.10, 0.46, 0.36)]
    return [
        cone(ACCENT, (0, 0, -0.34), (0.24, 0.18), 0.40),
        cone(MAIN, (0, 0, 0.13), (0.62, 0.58), 0.08),
        blob(MAIN, (0, 0, 0.16), (0, 0, 0.42), (0.50, 0.28)),
        *[ball("white", spot, 0.09) for spot in spots],
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


def train() -> Parts:
    wheels = [
        cone(ACCENT, (x, y, -0.36), (0.21, 0.21), 0.07, (0, 1, 0))
        for x in (-0.50, -0.02, 0.46)
        for y in (-0.32, 0.32)
    ]
    return [
        cone(MAIN, (0.20, 0, 0.04), (0.28, 0.28), 0.52, (1, 0, 0)),
        box(MAIN, (-0.48, 0, 0.16), (0.26, 0.34, 0.42)),
        box("black", (-0.48, 0, 0.60), (0.32, 0.40, 0.06)),
        box("white", (-0.48, 0, 0.30), (0.14, 0.36, 0.12)),
        box("black", (0, 0, -0.26), (0.72, 0.25, 0.07)),
        cone("black", (0.46, 0, 0.44), (0.10, 0.17), 0.18),
        ball("yellow", (0.72, 0, 0.06), 0.13),
        *wheels,
    ]


def boat() -> Parts:
    sail = [
        box(ACCENT, (0.04, 0, z), (0.46 - 0.44 * (z + 0.02), 0.06, 0.075), 0.02, ("z", 30))
        for z in (0.0, 0.14, 0.28, 0.42, 0.56, 0.70, 0.84)
    ]
    return [
        blob(MAIN, (-0.42, 0, -0.42), (0.62, 0, -0.36), (0.27, 0.12)),
        box(MAIN, (-0.10, 0, -0.30), (0.60, 0.28, 0.12), 0.06),
        box("white", (-0.44, 0, -0.12), (0.15, 0.16, 0.12)),
        cone("brown", (0.06, 0, 0.25), (0.05, 0.04), 0.56),
        *sail,
    ]


def airplane() -> Parts:
    return [
        blob(MAIN, (0.58, 0, 0), (-0.66, 0, 0.06), (0.22, 0.11)),
        box(ACCENT, (0.10, 0, -0.05), (0.22, 0.88, 0.06)),
        box(ACCENT, (-0.66, 0, 0.10), (0.13, 0.36, 0.05)),
        box(ACCENT, (-0.70, 0, 0.28), (0.13, 0.05, 0.22)),
        ball("black", (0.56, 0, 0.13), 0.15),
    ]


def helicopter() -> Parts:
    skids = [
        blob("black", (-0.24, y, -0.56), (0.46, y, -0.56), (0.05, 0.05)) for y in (-0.28, 0.28)
    ]
    struts = [box("black", (0.1, y, -0.45), (0.04, 0.04, 0.13)) for y in (-0.24, 0.24)]
    return [
        blob(MAIN, (0.22, 0, -0.10), (-0.14, 0, -0.08), (0.36, 0.28)),
        blob(MAIN, (-0.24, 0, 0.0), (-0.84, 0, 0.12), (0.13, 0.07)),
        box(ACCENT, (-0.84, 0, 0.20), (0.09, 0.05, 0.20)),
        ball("white", (0.42, 0, 0.0), 0.24),
        cone("black", (0.08, 0, 0.28), (0.06, 0.06), 0.10),
        box(ACCENT, (0.08, 0, 0.40), (0.84, 0.08, 0.045), 0.02, ("z", 35)),
        box(ACCENT, (0.08, 0, 0.40), (0.84, 0.08, 0.045), 0.02, ("z", 125)),
        *skids,
        *struts,
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
