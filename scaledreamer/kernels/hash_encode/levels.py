"""Levels of a hash encoding: resolutions, and where their features lie in the table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

PRIMES = (1, 2654435761, 805459861)
"""Factors of equation (4); with 1 for x, neighbours along x mostly share a memory sector."""


@dataclass(frozen=True, kw_only=True)
class HashLevels:
    """Grids of growing resolution over [-1, 1]^3, coarsest first.

    Source: Mueller et al., Instant NGP, SIGGRAPH 2022, section 3. Level l has
    N_l = floor(base * (finest / base)^(l / (L - 1))) cells a side, equations (2) and (3), and
    (N_l + 1)^3 vertices. A level whose vertices fit into 2^log2_table_size entries gives each its
    own, x running fastest; another has 2^log2_table_size entries that vertices share, equation (4).
    Levels follow each other in the table without gaps.
    """

    num_levels: int = 16
    """L. Default, as of the other fields: Hyper-iNGP of ScaleDreamer, whose scale is 1.4473."""
    log2_table_size: int = 19
    """Most entries of a level, as a power of two."""
    base_resolution: int = 16
    """Cells a side of the coarsest level."""
    finest_resolution: int = 4096
    """Cells a side of the finest level: unlike a scale, it can be met exactly."""

    def __post_init__(self) -> None:
        for name, low, high in (("num_levels", 1, 32), ("log2_table_size", 1, 26)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected {low} to {high}")
        if not 1 <= self.base_resolution <= self.finest_resolution <= 1 << 20:
            raise ValueError(
                f"finest_resolution: got {self.finest_resolution} with base_resolution "
                f"{self.base_resolution}; expected 1 <= base <= finest <= 2^20"
            )

    @property
    def per_level_scale(self) -> float:
        steps = max(self.num_levels - 1, 1)
        return (self.finest_resolution / self.base_resolution) ** (1 / steps)

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Cells a side; the slack keeps whole numbers whole where the power is rounded down."""
        scale = self.per_level_scale
        return tuple(
            int(self.base_resolution * scale**level + 1e-6) for level in range(self.num_levels)
        )

    @cached_property
    def is_dense(self) -> tuple[bool, ...]:
        return tuple((cells + 1) ** 3 <= 1 << self.log2_table_size for cells in self.resolutions)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every level."""
        pairs = zip(self.resolutions, self.is_dense, strict=True)
        return tuple((n + 1) ** 3 if dense else 1 << self.log2_table_size for n, dense in pairs)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of every level."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def num_entries(self) -> int:
        return sum(self.sizes)
