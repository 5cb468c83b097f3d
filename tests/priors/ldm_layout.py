"""Names and shapes of MVDream's published checkpoints, from the classes that its configs name.

Written from the constructors of its `MultiViewUNetModel`, `AutoencoderKL` and text embedders; the
sizes default to sd-v2.1-base-4view.
"""

from __future__ import annotations

from collections.abc import Iterator

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, num_in: int, num_out: int, has_bias: bool = True) -> Shapes:
    bias = {f"{name}.bias": (num_out,)} if has_bias else {}
    return {f"{name}.weight": (num_out, num_in), **bias}


def _conv(name: str, num_in: int, num_out: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (num_out, num_in, side, side), f"{name}.bias": (num_out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _res_block(name: str, num_in: int, num_out: int, time: int) -> Shapes:
    skip = {} if num_in == num_out else _conv(f"{name}.skip_connection", num_in, num_out, 1)
    return {
        **_norm(f"{name}.in_layers.0", num_in),
        **_conv(f"{name}.in_layers.2", num_in, num_out),
        **_linear(f"{name}.emb_layers.1", time, num_out),
        **_norm(f"{name}.out_layers.0", num_out),
        **_conv(f"{name}.out_layers.3", num_out, num_out),
        **skip,
    }


def _transformer(name: str, width: int, context: int, is_linear: bool) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = _norm(f"{name}.norm", width)
    for end in ("proj_in", "proj_out"):
        shapes |= (
            _linear(f"{name}.{end}", width, width)
            if is_linear
            else _conv(f"{name}.{end}", width, width, 1)
        )
    for attention, memory in (("attn1", width), ("attn2", context)):
        shapes |= _linear(f"{block}.{attention}.to_q", width, width, False)
        shapes |= _linear(f"{block}.{attention}.to_k", memory, width, False)
        shapes |= _linear(f"{block}.{attention}.to_v", memory, width, False)
        shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
    shapes |= _linear(f"{block}.ff.net.0.proj", width, 8 * width)
    shapes |= _linear(f"{block}.ff.net.2", 4 * width, width)
    for number in (1, 2, 3):
        shapes |= _norm(f"{block}.norm{number}", width)
    return shapes


def unet(
    width: int = 320,
    mults: tuple[int, ...] = (1, 2, 4, 4),
    num_res: int = 2,
    context: int = 1024,
    is_linear: bool = True,
    camera: int = 16,
) -> Shapes:
    """Attention on every level but the last."""
    time = 4 * width
    shapes = {
        **_linear("time_embed.0", width, time),
        **_linear("time_embed.2", time, time),
        **_linear("camera_embed.0", camera, time),
        **_linear("camera_embed.2", time, time),
        **_conv("input_blocks.0.0", 4, width),
    }
    skips, now, index = [width], width, 1
    for level, mult in enumerate(mults):
        for _ in range(num_res):
            shapes |= _res_block(f"input_blocks.{index}.0", now, mult * width, time)
            now = mult * width
            if level < len(mults) - 1:
                shapes |= _transformer(f"input_blocks.{index}.1", now, context, is_linear)
            skips.append(now)
            index += 1
        if level < len(mults) - 1:
            shapes |= _conv(f"input_blocks.{index}.0.op", now, now)
            skips.append(now)
            index += 1
    shapes |= _res_block("middle_block.0", now, now, time)
    shapes |= _transformer("middle_block.1", now, context, is_linear)
    shapes |= _res_block("middle_block.2", now, now, time)
    index = 0
    for level, mult in reversed(list(enumerate(mults))):
        for number in range(num_res + 1):
            shapes |= _res_block(f"output_blocks.{index}.0", now + skips.pop(), mult * width, time)
            now, last = mult * width, 1
            if level < len(mults) - 1:
                shapes |= _transformer(f"output_blocks.{index}.1", now, context, is_linear)
                last = 2
            if level and number == num_res:
                shapes |= _conv(f"output_blocks.{index}.{last}.conv", now, now)
            index += 1
    return {**shapes, **_norm("out.0", now), **_conv("out.2", width, 4)}


def _vae_block(name: str, num_in: int, num_out: int) -> Shapes:
    skip = {} if num_in == num_out else _conv(f"{name}.nin_shortcut", num_in, num_out, 1)
    return {
        **_norm(f"{name}.norm1", num_in),
        **_conv(f"{name}.conv1", num_in, num_out),
        **_norm(f"{name}.norm2", num_out),
        **_conv(f"{name}.conv2", num_out, num_out),
        **skip,
    }


def _vae_middle(side: str, width: int) -> Shapes:
    shapes = {**_vae_block(f"{side}.mid.block_1", width, width)}
    shapes |= _vae_block(f"{side}.mid.block_2", width, width)
    shapes |= _norm(f"{side}.mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{side}.mid.attn_1.{name}", width, width, 1)
    return shapes


def vae(width: int = 128, mults: tuple[int, ...] = (1, 2, 4, 4), num_res: int = 2) -> Shapes:
    last = mults[-1] * width
    shapes = {**_conv("encoder.conv_in", 3, width), **_conv("decoder.conv_in", 4, last)}
    now = width
    for level, mult in enumerate(mults):
        for number in range(num_res):
            shapes |= _vae_block(f"encoder.down.{level}.block.{number}", now, mult * width)
            now = mult * width
        if level < len(mults) - 1:
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", now, now)
    for side in ("encoder", "decoder"):
        shapes |= _vae_middle(side, last)
    for level, mult in reversed(list(enumerate(mults))):
        for number in range(num_res + 1):
            shapes |= _vae_block(f"decoder.up.{level}.block.{number}", now, mult * width)
            now = mult * width
        if level:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", now, now)
    shapes |= {**_norm("encoder.norm_out", last), **_conv("encoder.conv_out", last, 8)}
    shapes |= {**_norm("decoder.norm_out", width), **_conv("decoder.conv_out", width, 3)}
    return {**shapes, **_conv("quant_conv", 8, 8, 1), **_conv("post_quant_conv", 4, 4, 1)}


def open_clip(words: int = 49408, length: int = 77, width: int = 1024, layers: int = 24) -> Shapes:
    shapes: Shapes = {
        "positional_embedding": (length, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (words, width),
        **_norm("ln_final", width),
    }
    for layer in range(layers):
        name = f"transformer.resblocks.{layer}"
        shapes |= {**_norm(f"{name}.ln_1", width), **_norm(f"{name}.ln_2", width)}
        shapes[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{name}.attn.in_proj_bias"] = (3 * width,)
        shapes |= _linear(f"{name}.attn.out_proj", width, width)
        shapes |= _linear(f"{name}.mlp.c_fc", width, 4 * width)
        shapes |= _linear(f"{name}.mlp.c_proj", 4 * width, width)
    return shapes


def clip(words: int = 49408, length: int = 77, width: int = 768, layers: int = 12) -> Shapes:
    """The tower of sd-v1.5-4view, in transformers' names."""
    shapes: Shapes = {
        "embeddings.position_ids": (1, length),
        "embeddings.token_embedding.weight": (words, width),
        "embeddings.position_embedding.weight": (length, width),
        **_norm("final_layer_norm", width),
    }
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{name}.self_attn.{part}", width, width)
        shapes |= _linear(f"{name}.mlp.fc1", width, 4 * width)
        shapes |= _linear(f"{name}.mlp.fc2", 4 * width, width)
        shapes |= {**_norm(f"{name}.layer_norm1", width), **_norm(f"{name}.layer_norm2", width)}
    return shapes


SCHEDULE = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)


def whole(unet_shapes: Shapes, vae_shapes: Shapes, text: Shapes, is_open_clip: bool) -> Shapes:
    """All names of a checkpoint's file."""
    tower = (
        "cond_stage_model.model." if is_open_clip else "cond_stage_model.transformer.text_model."
    )

    def under(prefix: str, shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
        return ((f"{prefix}{name}", shape) for name, shape in shapes.items())

    return {
        **dict.fromkeys(SCHEDULE, (1000,)),
        **dict(under("model.diffusion_model.", unet_shapes)),
        **dict(under("first_stage_model.", vae_shapes)),
        **dict(under(tower, text)),
    }
