"""
Stein variational gradient descent on data
==========================================

Two posteriors: a logistic regression whose moments are known by importance sampling, and a small Bayesian neural
network. The first shows what a kernel does to the moments; the second uses batches of the data, and is judged by its
predictions.
"""

# %%
# Logistic regression
# -------------------
#
# The Wisconsin breast-cancer data, 426 patients to learn from, 30 standardised features, prior :math:`N(0, I)`: the
# problem of ``otprox demo``, and its reference. Coordinates are those in which the Laplace approximation is
# :math:`N(0, I)`, so that one width of a kernel serves all directions.

import math
from importlib import import_module

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox.kernels import RBF, Bilinear, InverseMultiquadric, Median

torch.set_default_dtype(torch.float64)
posterior = import_module("otprox.demo.posterior")

data = posterior.load()
V = posterior.model(data)
mode = V.mode()
laplace = ox.Gaussian(mode, torch.linalg.inv(V.hessian(mode)))
reference = posterior.importance_sampling(V, laplace, 100_000)
to_theta = lambda z: mode + z @ laplace.factor.mT  # noqa: E731
F = ox.KL(lambda z: V(to_theta(z)))


def errors(z):
    """Root mean square error of the means, in posterior deviations; relative error of the covariance; mean ratio of the
    variances."""
    theta = ox.Particles(to_theta(z))
    gap = (theta.mean - reference.mean) / reference.cov.diagonal().sqrt()
    cov = torch.linalg.matrix_norm(theta.cov - reference.cov) / torch.linalg.matrix_norm(reference.cov)
    return gap.square().mean().sqrt(), cov, (theta.cov.diagonal() / reference.cov.diagonal()).mean()


start = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))


def sample(step, times):
    """The particles that start from N(0, I), after `times`."""
    return ox.record(ox.flow(step, ox.Particles(start), times), every=len(times)).final.x


# %%
# Three kernels. A radial one, its width by the median rule; the ``Bilinear`` one, :math:`x^\top y + 1`; and their sum.
# At rest, the velocity vanishes at every particle. For the bilinear kernel this says
# :math:`\mathbb E\,\nabla V = 0` and :math:`\mathbb E\,\nabla V(x)\,x^\top = I`, two identities that the posterior
# satisfies: mean and covariance are right to the extent that these determine them. A radial kernel in 30 dimensions
# sees little of the other particles, and 200 of them fall short of the posterior's variance by a factor of five.

short = [0.01 * k for k in range(401)]
long = [0.3 * k for k in range(401)]
found = {
    "independent draws of Laplace": start,
    "RBF(Median())": sample(ox.Adagrad(F, ox.Stein(RBF(Median())), decay=1.0), long),
    "Bilinear()": sample(ox.Forward(F, ox.Stein(Bilinear())), short),
    "Bilinear() + RBF(Median())": sample(ox.Forward(F, ox.Stein(Bilinear() + RBF(Median()))), short),
}
print(f"{'':30}{'mean, rms':>11}{'covariance':>12}{'variances':>11}")
for name, z in found.items():
    mean, cov, ratio = errors(z)
    print(f"{name:30}{mean:11.3f}{cov:12.3f}{ratio:11.3f}")
own = (reference.mean_error / reference.cov.diagonal().sqrt()).square().mean().sqrt()
print(f"{'error of the reference itself':30}{own:11.3f}")

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
spread = reference.cov.diagonal().sqrt()
styles = zip(found.items(), ("0.6", "C0", "C1", "C3"), ("x", "o", "s", "."), strict=True)
for (name, z), color, marker in styles:
    theta = ox.Particles(to_theta(z))
    left.plot((theta.mean - reference.mean) / spread, marker, color=color, ms=5, label=name)
    right.plot(spread, theta.cov.diagonal().sqrt(), marker, color=color, ms=5, label=name)
left.axhline(0, color="k", lw=0.8)
left.set(xlabel="coefficient", ylabel="(mean − reference) / deviation", title="posterior means")
right.axline((spread.max().item(),) * 2, slope=1, color="k", lw=0.8)
right.set(xlabel="reference", ylabel="particles", title="posterior standard deviations")
right.legend(fontsize=8)
plt.show()

# %%
# A Bayesian neural network
# -------------------------
#
# The diabetes data that ship with scikit-learn: 442 patients, 10 features, disease progression a year later. One hidden
# layer of ten units, all weights :math:`N(0, 1)` before their scaling by the width of the layer, and the logarithm of
# the noise a parameter too: 132 parameters. ``Minibatch`` draws 64 patients a step, the same for all particles, and
# multiplies their loss so that the gradient is right on average.

HIDDEN, FEATURES = 10, 10
SHAPES = ((FEATURES, HIDDEN), (1, HIDDEN), (HIDDEN, 1), (1, 1), (1, 1))
SIZE = sum(a * b for a, b in SHAPES)


def network(theta, x):
    """Predictions (n, rows) and log noise (n, 1) of n networks, theta (n, SIZE)."""
    flat = theta.split([a * b for a, b in SHAPES], -1)
    W, b, w, c, log_noise = (part.reshape(*part.shape[:-1], *shape) for part, shape in zip(flat, SHAPES, strict=True))
    hidden = torch.tanh(x @ W / FEATURES**0.5 + b)
    return (hidden @ w / HIDDEN**0.5 + c)[..., 0], log_noise[..., 0]


def split(seed):
    """Standardised train and test sets, and the scale of the target."""
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import train_test_split

    parts = train_test_split(*load_diabetes(return_X_y=True), test_size=0.25, random_state=seed)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    x, x_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    return x, (y - y.mean()) / y.std(), x_test, (y_test - y.mean()) / y.std(), y.std()


def score(theta, x, y, scale):
    """Root mean square error and mean log-likelihood on a test set, in the units of the target, of the mixture."""
    f, log_noise = network(theta, x)
    log_p = torch.distributions.Normal(f, log_noise.exp()).log_prob(y).logsumexp(0) - math.log(len(f)) - scale.log()
    return (f.mean(0) - y).square().mean().sqrt() * scale, log_p.mean()


def regress(seed, n=20, steps=400):
    """Scores of several methods on one split; n particles from the prior."""
    x, y, x_test, y_test, scale = split(seed)
    draws = torch.Generator().manual_seed(seed)

    def loss(theta, index):
        f, log_noise = network(theta, x[index])
        return (0.5 * ((y[index] - f) / log_noise.exp()).square() + log_noise).sum(-1)

    prior = ox.Potential(ox.Quadratic(torch.zeros(SIZE)))
    batches = ox.Minibatch(loss, rows=len(x), size=64, generator=draws) + prior
    exact = ox.Minibatch(loss, rows=len(x), size=len(x), generator=draws) + prior
    start = torch.randn(n, SIZE, generator=draws)
    sizes = 0.05 / (1 + torch.arange(steps) / 100)
    learning = [0.0, *sizes.cumsum(0).tolist()]
    langevin = [2e-3 * k for k in range(2 * steps + 1)]
    schemes = {
        "one network": (ox.Adagrad(batches), start[:1], learning),
        "ensemble, no interaction": (ox.Adagrad(batches), start, learning),
        "SVGD, RBF": (ox.Adagrad(batches + ox.Entropy(), ox.Stein(RBF(Median()))), start, learning),
        "SVGD, inverse multiquadric": (
            ox.Adagrad(batches + ox.Entropy(), ox.Stein(InverseMultiquadric(Median()))),
            start,
            learning,
        ),
        "Langevin, all the data": (ox.Forward(exact) >> ox.Heat(generator=draws), start, langevin),
    }
    rows = {}
    for name, (step, x0, times) in schemes.items():
        final = ox.record(ox.flow(step, ox.Particles(x0), times), every=len(times)).final
        rows[name] = torch.stack(score(final.x, x_test, y_test, scale))
    ones = torch.ones(len(x), 1)
    A, B = torch.cat([x, ones], 1), torch.cat([x_test, ones[: len(x_test)]], 1)
    beta = torch.linalg.solve(A.mT @ A + torch.eye(A.shape[1]), A.mT @ y)
    noise = (y - A @ beta).square().mean().sqrt()
    log_p = torch.distributions.Normal(B @ beta, noise).log_prob(y_test) - scale.log()
    rows["ridge regression"] = torch.stack([(B @ beta - y_test).square().mean().sqrt() * scale, log_p.mean()])
    return rows


# %%
# Three random splits; the differences between methods are smaller than those between splits, so the table has the mean
# over the splits of each method and of its difference to the ensemble.

splits = [regress(seed) for seed in range(3)]
print(f"{'':30}{'test RMSE':>10}{'difference':>18}{'log-lik':>10}{'difference':>18}")
for name in splits[0]:
    values = torch.stack([rows[name] for rows in splits])
    gap = values - torch.stack([rows["ensemble, no interaction"] for rows in splits])
    error = gap.std(0) / len(splits) ** 0.5
    cells = [f"{values.mean(0)[i]:10.3f}{gap.mean(0)[i]:+10.3f} ± {error[i]:5.3f}" for i in (0, 1)]
    print(f"{name:30}{cells[0]}{cells[1]}")

# %%
# On this set a linear model does better than any of the networks. Among these, averaging helps against a single one.
# With the RBF kernel SVGD predicts as an ensemble without interaction does: in 132 dimensions 20 particles hardly feel
# each other. The kernel with heavier tails comes nearer to Langevin, the longest of the runs.
