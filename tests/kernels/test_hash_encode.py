"""Hash encoding against a loop over corners, closed forms, and its forms against each other.

Largest differences allowed, relative to the largest expected value, and the worst measured.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from scaledreamer.kernels.backend import use_backend
from scaledreamer.kernels.hash_encode import HashLevels, hash_encode
from tests.kernels.triplanes import alerts, poisoned

TOLERANCES = {
    "reference": 1e-14,  # 2.3e-16, in float64
    "numba": 5e-6,  # 2.1e-6, in float32 like those below, outputs and gradient
    "triton": 5e-6,  # 1.6e-6, interpreted; a GPU may round a position once less
}
# Registers and shared memory in bytes that compiled kernels may take; as compiled: 32 and 0.
MOST_REGISTERS, MOST_SHARED = 40, 0

# Cells a side 3, 5, 10, 19: the first two levels are dense, the others hashed.
LEVELS = HashLevels(num_levels=4, log2_table_size=8, base_resolution=3, finest_resolution=19)


def _inputs(
    num_points: int, num_features: int, levels: HashLevels = LEVELS
) -> tuple[Tensor, Tensor]:
    """float64; a few points lie on faces, edges, corners and outside."""
    points = torch.rand(num_points, 3, dtype=torch.float64) * 2 - 1
    special = [(1, 0.2, 0.3), (-1, 1, 0.1), (1, 1, 1), (-1, -1, -1), (1.5, -0.3, 0.2), (-9, 8, 0)]
    for row, value in zip(points[num_points // 2 :], special, strict=False):
        row.copy_(torch.tensor(value))
    # Exactly what float32 forms see.
    points = points.float().double()
    return torch.randn(levels.num_entries, num_features, dtype=torch.float64), points


def _by_hand(table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
    num_features = table.shape[1]
    out = torch.zeros(len(points), levels.num_levels * num_features, dtype=table.dtype)
    for n, point in enumerate(points.tolist()):
        for level in range(levels.num_levels):
            cells = levels.resolutions[level]
            at = [min(max(x / 2 + 0.5, 0), 1) * cells for x in point]
            low = [min(math.floor(p), cells - 1) for p in at]
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (a + b for a, b in zip(low, corner, strict=True))
                weight = math.prod(1 - abs(p - v) for p, v in zip(at, (x, y, z), strict=True))
                if levels.is_dense[level]:
                    index = x + y * (cells + 1) + z * (cells + 1) ** 2
                else:
                    wrapped = (y * 2654435761) % 2**32 ^ (z * 805459861) % 2**32
                    index = (x ^ wrapped) % 2**levels.log2_table_size
                columns = slice(level * num_features, (level + 1) * num_features)
                out[n, columns] += weight * table[levels.offsets[level] + index]
    return out


def _assert_close(found: Tensor, expected: Tensor, tolerance: str) -> None:
    assert found.shape == expected.shape
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[tolerance]


def _with_gradient(table: Tensor, points: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    table = table.clone().requires_grad_()
    out = hash_encode(table, points, LEVELS)
    return out.detach(), torch.autograd.grad(out, table, grad)[0]


@pytest.fixture
def numba_form() -> Iterator[None]:
    pytest.importorskip("numba")
    with use_backend("numba"):
        yield


@pytest.fixture
def _poison() -> Iterator[None]:
    """Memory that nobody has written is not-a-number."""
    with poisoned():
        assert torch.isnan(torch.zeros(1).new_empty(1))
        yield


def test_the_levels_are_those_of_hyper_ingp() -> None:
    levels = HashLevels()
    assert levels.per_level_scale == pytest.approx(1.4473, abs=5e-5)
    assert levels.resolutions[0] == 16
    assert levels.resolutions[-1] == 4096
    assert levels.is_dense == (True,) * 5 + (False,) * 11
    assert levels.sizes[:2] == (17**3, 24**3)
    assert levels.offsets[:3] == (0, 17**3, 17**3 + 24**3)
    assert levels.num_entries == levels.offsets[-1] + 2**19


@pytest.mark.parametrize("num_levels", range(1, 33))
def test_the_finest_resolution_is_met(num_levels: int) -> None:
    levels = HashLevels(num_levels=num_levels, base_resolution=7, finest_resolution=1021)
    assert levels.resolutions[-1] == (1021 if num_levels > 1 else 7)
    assert list(levels.resolutions) == sorted(levels.resolutions)


@pytest.mark.parametrize("num_features", [1, 2, 3])
def test_matches_a_loop_over_corners(num_features: int) -> None:
    assert LEVELS.is_dense == (True, True, False, False)
    table, points = _inputs(23, num_features)
    expected = _by_hand(table, points, LEVELS)
    _assert_close(hash_encode(table, points, LEVELS), expected, "reference")


def test_dense_levels_interpolate_a_linear_function_exactly() -> None:
    levels = HashLevels(num_levels=3, log2_table_size=12, base_resolution=2, finest_resolution=9)
    assert all(levels.is_dense)
    slopes = torch.tensor([[0.3, -1.0], [2.0, 0.7], [-0.4, 1.1]], dtype=torch.float64)
    table = torch.cat(
        [
            torch.cartesian_prod(*[torch.linspace(-1, 1, n + 1, dtype=torch.float64)] * 3).flip(1)
            for n in levels.resolutions
        ]
    )
    points = torch.rand(40, 3, dtype=torch.float64) * 2 - 1
    expected = (points @ slopes).repeat(1, 3)
    _assert_close(hash_encode(table @ slopes, points, levels), expected, "reference")


def test_equal_features_everywhere_are_interpolated_to_themselves() -> None:
    _, points = _inputs(50, 1)
    found = hash_encode(torch.full((LEVELS.num_entries, 2), 3.5).double(), points, LEVELS)
    _assert_close(found, torch.full_like(found, 3.5), "reference")


def test_points_outside_take_the_nearest_face() -> None:
    table, points = _inputs(9, 2)
    outside = hash_encode(table, points * 3, LEVELS)
    assert torch.equal(outside, hash_encode(table, (points * 3).clamp(-1, 1), LEVELS))


def test_gradient() -> None:
    levels = HashLevels(num_levels=2, log2_table_size=5, base_resolution=2, finest_resolution=5)
    table, points = _inputs(7, 2, levels)
    encode = lambda table: hash_encode(table, points, levels)  # noqa: E731
    assert torch.autograd.gradcheck(encode, table.requires_grad_())


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("num_features", [1, 2, 4, 5])
@pytest.mark.parametrize("num_points", [1, 63, 4500])  # two whole blocks and a part
def test_numba_is_the_reference(num_points: int, num_features: int, numba_form: None) -> None:
    table, points = _inputs(num_points, num_features)
    grad = torch.randn(4 * num_features, num_points, dtype=torch.float64).t()
    with use_backend("reference"):
        expected = _with_gradient(table, points, grad)
    found = _with_gradient(
        table.float().t().contiguous().t(), points.float().t().contiguous().t(), grad.float()
    )
    for one, other in zip(found, expected, strict=True):
        _assert_close(one, other, "numba")


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("num_parts", [2, 3, 7])
def test_any_number_of_threads_gives_the_same(num_parts: int, numba_form: None) -> None:
    from scaledreamer.kernels.hash_encode import numba_cpu

    table, points = (one.float() for one in _inputs(9001, 2))
    grad = torch.randn(9001, 8)
    expected = _with_gradient(table, points, grad)
    found = torch.empty(9001, 8), torch.zeros(table.shape)
    data = numba_cpu._level_data(LEVELS)
    numba_cpu._forward(table.numpy(), points.numpy(), found[0].numpy(), data, num_parts)
    numba_cpu._backward(points.numpy(), grad.numpy(), found[1].numpy(), data, num_parts)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_numba_reads_no_entry_that_is_not_there(numba_form: None) -> None:
    table = torch.randn(LEVELS.num_entries, 2, requires_grad=True)
    points = torch.tensor([[math.nan, 0.0, 0.0], [0.0, math.inf, -math.inf], [1e30, -1e30, 0.5]])
    out = hash_encode(table, points, LEVELS)
    assert out[0].isnan().all()
    assert torch.equal(out[1:], hash_encode(table, points[1:].clamp(-1, 1), LEVELS))
    out.sum().backward()


def _check_empty(device: torch.device) -> None:
    table = torch.randn(LEVELS.num_entries, 2, device=device, requires_grad=True)
    out = hash_encode(table, torch.zeros(0, 3, device=device), LEVELS)
    assert out.shape == (0, 8)
    out.sum().backward()
    assert table.grad is not None
    assert not table.grad.any()


@pytest.mark.parametrize("form", ["reference", "numba"])
def test_no_points_give_no_features(form: str) -> None:
    if form == "numba":
        pytest.importorskip("numba")
    with use_backend(form):  # type: ignore[arg-type]
        _check_empty(torch.device("cpu"))


@pytest.mark.interpreted
def test_no_points_give_no_features_in_triton(triton_device: torch.device) -> None:
    _check_empty(triton_device)


@pytest.mark.interpreted
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("num_features", [2, 4])
@pytest.mark.parametrize("num_points", [1, 128, 301])
def test_triton_is_the_reference(
    num_points: int, num_features: int, triton_device: torch.device
) -> None:
    table, points = _inputs(num_points, num_features)
    grad = torch.randn(num_points, 4 * num_features, dtype=torch.float64)
    grad[1::3] = 0
    with use_backend("reference"):
        expected = _with_gradient(table, points, grad)
    for is_contiguous in (True, False):
        single = [one.float().to(triton_device) for one in (table, points, grad)]
        if not is_contiguous:
            single = [one.t().contiguous().t() for one in single]
        found = _with_gradient(*single)
        for one, other in zip(found, expected, strict=True):
            _assert_close(one.cpu(), other, "triton")


@pytest.mark.interpreted
def test_other_numbers_of_features_take_the_reference(triton_device: torch.device) -> None:
    table, points = (one.to(triton_device) for one in _inputs(5, 3))
    expected = _by_hand(table.cpu(), points.cpu(), LEVELS)
    _assert_close(hash_encode(table, points, LEVELS).cpu(), expected, "reference")


@pytest.mark.interpreted
def test_the_gradient_says_that_it_does_not_repeat(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledreamer.kernels.hash_encode import fused

    found = alerts(monkeypatch, fused)
    table, points = (one.float().to(triton_device) for one in _inputs(2, 2))
    _with_gradient(table, points, torch.ones(2, 8, device=triton_device))
    assert found == ["hash_encode_backward"]


@pytest.mark.interpreted
def test_triton_gradient(triton_device: torch.device) -> None:
    levels = HashLevels(num_levels=2, log2_table_size=5, base_resolution=2, finest_resolution=5)
    table, points = (one.to(triton_device) for one in _inputs(7, 2, levels))
    encode = lambda table: hash_encode(table, points, levels)  # noqa: E731
    assert torch.autograd.gradcheck(encode, table.requires_grad_(), fast_mode=True)


@pytest.mark.interpreted
def test_the_custom_operators_are_sound(triton_device: torch.device) -> None:
    from scaledreamer.kernels.hash_encode import fused

    table, points = (one.float().to(triton_device) for one in _inputs(5, 2))
    levels = 4, 8, 3, 19
    torch.library.opcheck(fused._encode, (table.requires_grad_(), points, *levels))
    grad = torch.randn(8, 5, device=triton_device)
    torch.library.opcheck(fused._encode_backward, (points, grad, 2, *levels))


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiled_graph_gives_the_same(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `torch.compile` can't trace the checker of shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    table, points = (one.float().to(triton_device) for one in _inputs(33, 2))
    grad = torch.randn(33, 8, device=triton_device)
    found = []
    for encode in (
        lambda table: hash_encode(table, points, LEVELS),
        torch.compile(
            lambda table: hash_encode(table, points, LEVELS), fullgraph=True, backend="aot_eager"
        ),
    ):
        leaf = table.clone().requires_grad_()
        out = encode(leaf)
        found.append((out.detach(), *torch.autograd.grad(out, leaf, grad)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("index", range(4))
def test_compiled_kernels_are_lean(index: int, capability: int, compiler: None) -> None:
    from benchmarks._compiled_other import hash_encode as specialisations
    from benchmarks.compiled import compile_kernel

    name, kernel, signature, constants, num_warps, _ = specialisations()[index]
    made = compile_kernel(kernel, signature, constants, capability, num_warps)
    features = constants["FEATURES"]
    assert made.stack_bytes == 0
    assert made.registers <= MOST_REGISTERS
    assert made.shared_bytes <= MOST_SHARED
    assert made.count("ATOM") == 0
    if "backward" not in name:
        assert made.count(r"LDG\.E\.64" if features == 2 else r"LDG\.E\.128") >= 8
    elif capability == 90:
        assert made.count(rf"REDG\.E\.ADD\.F32x{features}\.") == made.count("RED") == 8
    else:
        assert made.count(r"RED\.E\.ADD\.F32\.") == made.count("RED") == 8 * features


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_levels", {"num_levels": 0}),
        ("log2_table_size", {"log2_table_size": 27}),
        ("finest_resolution", {"finest_resolution": 8}),
    ],
)
def test_wrong_levels_are_named(name: str, values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got"):
        HashLevels(**values)


def test_wrong_arguments_are_named() -> None:
    table, points = torch.zeros(LEVELS.num_entries, 2), torch.zeros(5, 3)
    for bad in (table[1:], table.half()):
        with pytest.raises(ValueError, match=r"^table: got"):
            hash_encode(bad, points, LEVELS)
    for bad in (points.double(), points.to("meta")):
        with pytest.raises(ValueError, match=r"^points: got"):
            hash_encode(table, bad, LEVELS)
    with pytest.raises(ValueError, match=r"^points: want a gradient"):
        hash_encode(table, points.requires_grad_(), LEVELS)
    # Shapes of the wrong rank are caught by the checker before they reach the door.
    door = inspect.unwrap(hash_encode)
    with pytest.raises(ValueError, match=r"^points: got shape"):
        door(table, torch.zeros(5, 2), LEVELS)
