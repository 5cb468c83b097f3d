"""What a solid background adds to a picture."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def blend(
    rgb: Float[Tensor, "*n 3"], opacity: Float[Tensor, "*n"], background: Float[Tensor, "*n 3"]
) -> Float[Tensor, "*n 3"]:
    """Premultiplied colour over a background; exactly the background where opacity is 0."""
    return rgb + (1.0 - opacity)[..., None] * background
