"""The exact score by three other routes."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scaledreamer.cameras import ring
from scaledreamer.priors import gaussian_mixture
from scaledreamer.priors._schedule import cosine_schedule
from scaledreamer.priors.gaussian_mixture import Config, GaussianMixturePrior, create

TEXTS = ["a red box", "a blue ball"]


@pytest.mark.parametrize("use_flow", [False, True])
def test_noise_is_minus_sigma_times_the_gradient_of_the_log_density(use_flow: bool) -> None:
    prior = create(Config(use_flow=use_flow))
    t = torch.tensor([0.02, 0.3, 0.7, 1.0], dtype=torch.float64)
    condition = prior.condition([TEXTS[0], TEXTS[1]] * 2, None)
    for rows in (condition.positive, condition.null):
        x_t = torch.randn(4, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        (score,) = torch.autograd.grad(prior.log_density(x_t, t, rows).sum(), x_t)
        sigma = prior.schedule.sigma(t).double().view(-1, 1, 1, 1)
        torch.testing.assert_close(prior.predict_noise(x_t.detach(), t, rows), -sigma * score)


def test_log_density_is_torch_s() -> None:
    means = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64)
    variances = torch.rand_like(means) + 0.1
    schedule = cosine_schedule()
    prior = GaussianMixturePrior(["x"], means, variances, schedule)
    rows = prior.condition(["x"], None).positive
    t = torch.tensor([0.4])
    alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
    components = Normal(
        alpha * means[0].flatten(1), (alpha**2 * variances[0].flatten(1) + sigma**2).sqrt()
    )
    mixture = MixtureSameFamily(
        Categorical(torch.ones(3, dtype=torch.float64)), Independent(components, 1)
    )
    x_t = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(prior.log_density(x_t, t, rows), mixture.log_prob(x_t.flatten(1)))


def test_noise_is_the_posterior_mean_by_monte_carlo() -> None:
    """eps(x_t) = E[eps | x_t], with draws of x_0 weighted by p(x_t | x_0)."""
    generator = torch.Generator().manual_seed(3)
    means = torch.tensor([[-0.6, 0.2], [0.5, 0.6]], dtype=torch.float64).view(1, 2, 1, 1, 2)
    variances = torch.tensor([[0.05, 0.2], [0.1, 0.02]], dtype=torch.float64).view_as(means)
    schedule = cosine_schedule()
    prior = GaussianMixturePrior(["x"], means, variances, schedule)
    t, x_t = torch.tensor([0.5]), torch.tensor([[0.1, 0.4]], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
    pick = torch.randint(2, (400_000,), generator=generator)
    normal = torch.randn(len(pick), 2, generator=generator, dtype=torch.float64)
    clean = means.view(2, 2)[pick] + variances.view(2, 2).sqrt()[pick] * normal
    noise = (x_t - alpha * clean) / sigma
    weights = (-0.5 * noise.square().sum(dim=1)).softmax(dim=0)
    expected = (weights[:, None] * noise).sum(dim=0)
    rows = prior.condition(["x"], None).positive
    noise_hat = prior.predict_noise(x_t.view(1, 1, 1, 2), t, rows)
    torch.testing.assert_close(noise_hat.flatten(), expected, atol=5e-3, rtol=0)


def test_null_row_is_the_union_and_reduces_to_the_only_text() -> None:
    prior = create(Config())
    x_t, t = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.tensor([0.4])
    each = [prior.condition([text], None) for text in TEXTS]
    densities = torch.stack([prior.log_density(x_t, t, one.positive) for one in each])
    union = prior.log_density(x_t, t, each[0].null)
    torch.testing.assert_close(union, densities.logsumexp(dim=0) - torch.tensor(2.0).log().double())
    alone = create(Config(texts=("one",)))
    condition = alone.condition(["one"], None)
    torch.testing.assert_close(
        alone.predict_noise(x_t, t, condition.null), alone.predict_noise(x_t, t, condition.positive)
    )


def test_unknown_text_and_wrong_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="got 'a cone'; known are"):
        create(Config()).condition(["a cone"], ring(1, (0.0,)))
    with pytest.raises(ValueError, match=r"prior\.std"):
        gaussian_mixture.Config(std=(0.4, 0.1))
    with pytest.raises(ValueError, match=r"prior\.texts"):
        gaussian_mixture.Config(texts=())
