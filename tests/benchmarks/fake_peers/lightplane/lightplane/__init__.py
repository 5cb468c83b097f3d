"""The formulas that Lightplane documents of its renderer, in PyTorch."""

from .lightplane_renderer import (
    DecoderParams,
    Rays,
    flatten_decoder_params,
    lightplane_renderer,
)

__all__ = ["DecoderParams", "Rays", "flatten_decoder_params", "lightplane_renderer"]
