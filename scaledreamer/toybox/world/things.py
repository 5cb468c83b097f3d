"""Things of a household, from signed-distance primitives.

Front faces +x, y points right as seen from the front, z up; sizes are free, a scene scales.
"""

from __future__ import annotations

from scaledreamer.toybox.world.primitives import (
    ACCENT,
    MAIN,
    Parts,
    ball,
    blob,
    box,
    cone,
    ring,
    torus,
)


def mug() -> Parts:
    return [
        ring(MAIN, (0, 0, 0), 0.42, 0.05, 0.48),
        ring(ACCENT, (0, 0, 0), 0.36, 0.03, 0.47),
        ring(ACCENT, (0, 0, 0.43), 0.41, 0.08, 0.08),
        cone(ACCENT, (0, 0, -0.40), (0.38, 0.38), 0.05),
        cone(MAIN, (0, 0, -0.455), (0.44, 0.44), 0.03),
        torus(ACCENT, (0, 0.58, 0), 0.25, 0.09, (1, 0, 0)),
    ]


def teapot() -> Parts:
    return [
        blob(MAIN, (0, 0, -0.16), (0, 0, -0.04), (0.48, 0.44)),
        cone(MAIN, (0, 0, -0.62), (0.32, 0.28), 0.06),
        blob(MAIN, (0, 0.36, -0.20), (0, 0.84, 0.24), (0.17, 0.08)),
        torus(MAIN, (0, -0.52, -0.06), 0.26, 0.08, (1, 0, 0)),
        cone(ACCENT, (0, 0, 0.36), (0.36, 0.20), 0.10),
        ball(ACCENT, (0, 0, 0.54), 0.13),
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


def sofa() -> Parts:
    seats = [box(ACCENT, (0.10, y, -0.03), (0.36, 0.30, 0.13), 0.06) for y in (-0.31, 0.31)]
    backs = [box(ACCENT, (-0.30, y, 0.40), (0.18, 0.29, 0.22), 0.08) for y in (-0.31, 0.31)]
    arms = [box(MAIN, (0.02, y, -0.06), (0.44, 0.13, 0.30), 0.06) for y in (-0.76, 0.76)]
    return [
        box(MAIN, (0, 0, -0.26), (0.42, 0.80, 0.13)),
        box(MAIN, (-0.38, 0, 0.02), (0.12, 0.80, 0.36), 0.06),
        *arms,
        *seats,
        *backs,
    ]


def bed() -> Parts:
    legs = [
        box(MAIN, (x, y, -0.42), (0.07, 0.07, 0.16)) for x in (-0.72, 0.72) for y in (-0.42, 0.42)
    ]
    return [
        box(MAIN, (0, 0, -0.25), (0.80, 0.48, 0.11)),
        box(MAIN, (-0.78, 0, -0.06), (0.07, 0.44, 0.30)),
        box(MAIN, (0.78, 0, -0.20), (0.05, 0.50, 0.14)),
        box(ACCENT, (0.20, 0, -0.04), (0.54, 0.56, 0.17), 0.08),
        box("white", (-0.52, 0, 0.0), (0.18, 0.34, 0.12), 0.08),
        *legs,
    ]


def lamp() -> Parts:
    return [
        cone(MAIN, (0, 0, -0.72), (0.36, 0.30), 0.08),
        cone(MAIN, (0, 0, -0.3), (0.075, 0.075), 0.5),
        cone(ACCENT, (0, 0, 0.40), (0.56, 0.30), 0.34),
        ball("yellow", (0, 0, 0.06), 0.14),
    ]


def plain_box() -> Parts:
    return [
        box(MAIN, (0, 0, -0.08), (0.52, 0.52, 0.40), 0.03),
        box(ACCENT, (0, 0, 0.40), (0.58, 0.58, 0.13), 0.03),
    ]


def umbrella() -> Parts:
    return [
        cone(MAIN, (0, 0, 0.30), (0.86, 0.62), 0.10),
        cone(MAIN, (0, 0, 0.55), (0.62, 0.08), 0.15),
        ball("white", (0, 0, 0.74), 0.06),
        cone(ACCENT, (0, 0, -0.28), (0.07, 0.07), 0.50),
        blob(ACCENT, (0, 0, -0.76), (0.14, 0, -0.88), (0.08, 0.08)),
        blob(ACCENT, (0.14, 0, -0.88), (0.30, 0, -0.74), (0.08, 0.08)),
    ]


def guitar() -> Parts:
    return [
        cone(MAIN, (0, 0, -0.48), (0.42, 0.42), 0.15, (1, 0, 0)),
        cone(MAIN, (0, 0, -0.06), (0.31, 0.31), 0.15, (1, 0, 0)),
        cone("black", (0.14, 0, -0.22), (0.14, 0.14), 0.04, (1, 0, 0)),
        box("brown", (0.15, 0, -0.58), (0.04, 0.18, 0.05)),
        box(ACCENT, (0.10, 0, 0.36), (0.07, 0.08, 0.44)),
        box(ACCENT, (0.06, 0, 0.84), (0.08, 0.15, 0.14)),
    ]


def key() -> Parts:
    return [
        torus(ACCENT, (0, 0, 0.52), 0.26, 0.12, (1, 0, 0)),
        cone(MAIN, (0, 0, -0.30), (0.11, 0.11), 0.52),
        box(MAIN, (0, 0.22, -0.70), (0.09, 0.18, 0.09)),
        box(MAIN, (0, 0.19, -0.40), (0.09, 0.15, 0.09)),
    ]


def hammer() -> Parts:
    return [
        cone(ACCENT, (0, 0, -0.26), (0.12, 0.09), 0.62),
        cone(MAIN, (0, 0.20, 0.48), (0.17, 0.17), 0.26, (0, 1, 0)),
        cone(MAIN, (0, 0.44, 0.48), (0.22, 0.22), 0.08, (0, 1, 0)),
        blob(MAIN, (0, -0.06, 0.50), (0, -0.56, 0.30), (0.16, 0.05)),
    ]
