"""
How fast does MMD converge?
===========================

Two measures can be compared through a kernel :math:`k`,

.. math::
    \\tfrac12\\mathrm{MMD}^2(\\mu, \\nu) = \\tfrac12\\iint k(x, y)\\,d(\\mu-\\nu)(x)\\,d(\\mu-\\nu)(y),

and :math:`\\mu` can descend it in :math:`W_2`: each particle is pulled to the target
and pushed away from its own kind,

.. math::
    \\dot x = \\nabla\\!\\int k(x, y)\\,d\\nu(y) - \\nabla\\!\\int k(x, y)\\,d\\mu(y).

This is a quadratic functional of :math:`\\mu`, and still how fast the flow gets to :math:`\\nu` depends on
the kernel: like :math:`e^{-2t}`, like a power of :math:`t`, or not at all. In otprox the flow
is ``Forward(MMD(k, nu))``.
"""

# %%
# On the circle
# -------------
#
# Take the dual Sobolev norms :math:`E_s = \tfrac12\sum_{k\ne0}|k|^{-2s}|c_k|^2` and the uniform target. For
# :math:`s = 1` the nonlinear flow is solved by characteristics: :math:`E(t) = e^{-2t}E(0)` exactly, for *every*
# :math:`\mu_0`. For :math:`s > 1` mode :math:`k` decays at the rate :math:`|k|^{2-2s}` only: high modes wait. When
# :math:`c_k = k^{-p}` the energy falls like :math:`t^{-a}` with :math:`a = (2s+2p-1)/(2s-2)`, the sharp exponent
# :math:`(s+r)/(s-1)` for data that are just not in :math:`H^r`, :math:`r = p - \tfrac12`. Rougher data, smoother
# kernels: slower. The equation is solved by Fourier collocation.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact
from otprox.kernels import RBF, Energy, Expected, Sobolev

torch.set_default_dtype(torch.float64)

cells = 256
grid = ox.Grid(0.0, 2 * math.pi, cells, periodic=True)
(x,) = grid.centers(torch.ones(()))
uniform = ox.Density(torch.full((cells,), 0.5 / math.pi), grid)
wave = ox.Density((1 + 0.8 * torch.cos(x)) / (2 * math.pi), grid)
rough = 1 + 0.01 * (2 / torch.arange(1, 100.0) * torch.cos(torch.arange(1, 100.0) * x[:, None])).sum(-1)
rough = ox.Density(rough / (2 * math.pi), grid)


def energies(s, mu, times):
    F = ox.MMD(Sobolev(s, modes=cells // 2 - 1), uniform)
    run = ox.record(ox.flow(ox.PseudoSpectral(F), mu, times), every=5, energy=ox.observe.energy(F))
    return run.times, run.series["energy"]


fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
for s, color in ((1.0, "C0"), (1.5, "C1"), (2.0, "C2")):
    t, energy = energies(s, wave, [0.05 * k for k in range(161)])
    left.semilogy(t, energy, color=color, label=f"$s = {s:g}$")
    if s > 1:
        t, energy = energies(s, rough, [1.0 * k for k in range(61 if s < 2 else 401)])
        right.loglog(t, energy, color=color, label=f"$s = {s:g}$")
        a = exact.mmd.sobolev_exponent(s, 0.5)
        theory = [1e-4 * exact.mmd.power_tail(ti, s, 1.0) for ti in t[3:].tolist()]
        right.loglog(t[3:], theory, "k:", label=f"theory, $t^{{-{a:g}}}$")
        observed = math.log2(energy[len(t) // 2 - 1] / energy[-1])  # from half of the time to the end
        print(f"s = {s:g}: exponent {observed:.3f}, theory {a:g}")
t = torch.linspace(0, 8, 9)
left.semilogy(t, 0.16 * torch.exp(-2 * t), "ko", ms=4, mfc="none", label=r"$0.16\,e^{-2t}$")
left.set(xlabel="$t$", ylabel="$E_s$", title=r"$\mu_0 = 1 + 0.8\cos x$")
right.set(xlabel="$t$", title="$c_k = 0.01/k$")
left.legend(fontsize=8)
right.legend(fontsize=8)
plt.show()

# %%
# On the line
# -----------
#
# With :math:`k = -|x - y|` half of MMD² is :math:`\int (F_\mu - F_\nu)^2dx`, and quantiles do not see each other: the
# one at level :math:`q` obeys :math:`\dot X = 2(q - F_\nu(X))`. The implicit step is exact too,
# :math:`X' + 2\tau(F_\nu(X') - q) = X`, a scalar equation for each quantile, jumps of :math:`F_\nu` included
# (``solvers.Cramer``, which ``Backward`` chooses). The rate depends on the target: exponential for a uniform one,
# where :math:`F_\nu` is linear; :math:`t^{-2}` for two atoms, since quantiles next to the median hardly know where to
# go; and in between for a Gaussian, whose tails are slow. (The steps grow with :math:`t`, so that the implicit scheme
# lags behind the exponential in the end.)

n = 2000
levels = (torch.arange(n) + 0.5) / n
start = ox.Quantiles(torch.zeros(n))
targets = {
    "uniform on [0, 1]": ox.Quantiles(levels),
    "N(0, 1)": ox.Gaussian([0.0], [[1.0]]),
    "two atoms": ox.Particles(torch.tensor([[-1.0], [1.0]])),
}
times = [0.0, *torch.logspace(-2, 2, 400).tolist()]
runs = {}
for name, nu in targets.items():
    F = ox.MMD(Energy(), nu)
    runs[name] = ox.record(ox.flow(ox.Backward(F), start, times), energy=ox.observe.energy(F), x=lambda k: k.after.x)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
run = runs["N(0, 1)"]
for q in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
    left.semilogx(run.times, run.series["x"][:, int(q * n), 0], color="C1", lw=1)
checks = [0.1, 1.0, 5.0, 20.0]
some = torch.tensor([0.75, 0.9, 0.99])
for t in checks:
    exactly = exact.mmd.cramer_flow(torch.zeros(3), some, torch.special.ndtr, t, 2.0)
    left.semilogx([t] * 3, exactly, "ko", ms=4, mfc="none")
left.set(xlabel="$t$", ylabel="$X_q(t)$", title="quantiles on their way to N(0, 1); circles: their equation")
for name, run in runs.items():
    right.loglog(run.times, run.series["energy"], label=name)
t = torch.logspace(0.3, 2, 50)
right.loglog(t, 1 / (6 * t**2), "k:", label=r"$1/(6t^2)$")
t = torch.linspace(0.1, 5, 50)
right.loglog(t, torch.exp(-4 * t) / 3, "k--", lw=1, label=r"$e^{-4t}/3$")
right.set(xlabel="$t$", ylabel=r"$\int(F_\mu-F_\nu)^2dx$", ylim=(1e-8, 1))
right.legend(fontsize=8)
plt.show()

# %%
# Particles that are lost
# -----------------------
#
# With a kernel of short range a particle far from the target feels nothing but the repulsion of its own kind. Noise
# injection (Arbel, Korba, Salim, Gretton 2019) takes the field at a perturbed point :math:`x + \beta_t u` in place of
# :math:`x`: what the particles explore is larger than where they are. As :math:`\beta_t` fades they settle.

rng = torch.Generator().manual_seed(0)
side = 1 - 2 * (torch.arange(100) % 2)[:, None]
sample = torch.randn(100, 2, generator=rng) / 2 + torch.tensor([2.0, 0.0]) * side
far = ox.Particles(torch.randn(100, 2, generator=rng) / 2 + torch.tensor([0.0, 5.0]))
F = ox.MMD(RBF(1.0), ox.Particles(sample))
clock = [1.0 * k for k in range(601)]
schemes = {
    "without noise": ox.Forward(F),
    r"noise $\beta_t = 3(1 - t/500)_+$": ox.NoisyForward(F, lambda t: 3 * max(0.0, 1 - t / 500), generator=rng),
}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
for ax, color, (name, step) in zip(axes, ("C0", "C3"), schemes.items(), strict=False):
    run = ox.record(ox.flow(step, far, clock), every=5, energy=ox.observe.energy(F))
    ax.scatter(*sample.T, s=10, color="0.7", label="target")
    ax.scatter(*far.x.T, s=6, color="k", alpha=0.3, label="start")
    ax.scatter(*run.final.x.T, s=9, color=color, label="$t = 600$")
    ax.set(title=name, xlim=(-6, 6), ylim=(-4, 8), aspect="equal")
    axes[2].semilogy(run.times, run.series["energy"], color=color, label=name)
axes[0].legend(fontsize=8)
axes[2].set(xlabel="$t$", title=r"$\frac{1}{2}$MMD²")
axes[2].legend(fontsize=8)
plt.show()

# %%
# A wide network
# --------------
#
# Let a particle be a neuron :math:`z = (a, w, b)` with :math:`\varphi_z(x) = a\,(wx + b)_+`, and a measure a network,
# :math:`f_\mu(x) = \int\varphi_z(x)\,d\mu(z)`. In the kernel :math:`k(z, z') = E_x\,\varphi_z(x)\,\varphi_{z'}(x)`
# half of MMD² between student and teacher is half the mean squared error of their functions. So the gradient
# descent of the network, with a step :math:`n\tau`, *is* the explicit flow: the two agree to rounding. The kernel knows
# nothing of measures but their functions: the loss vanishes without :math:`\mu = \nu`.


def neuron(z, x):
    return z[..., :1] * (z[..., 1:-1] @ x.mT + z[..., -1:]).relu()


data = torch.linspace(-2, 2, 80)[:, None]
teacher = torch.tensor([[3.0, 1.0, 1.0], [-6.0, 1.0, 0.0], [4.0, -1.0, -0.5]])
student = torch.randn(200, 3, generator=rng)
F = ox.MMD(Expected(neuron, data), ox.Particles(teacher))
run = ox.record(
    ox.flow(ox.Forward(F), ox.Particles(student), [0.1 * k for k in range(3001)]), every=10, loss=lambda k: F(k.after)
)

z = student.clone()
for _ in range(3000):
    z.requires_grad_()
    error = neuron(z, data).mean(0) - neuron(teacher, data).mean(0)
    (slope,) = torch.autograd.grad(0.5 * error.square().mean(), z)
    z = (z - 0.1 * len(z) * slope).detach()
print(f"largest distance between flow and gradient descent: {(z - run.final.x).abs().max():.1e}")

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
left.semilogy(run.times, run.series["loss"])
left.set(xlabel="$t$", title="half the mean squared error")
middle.plot(data, neuron(student, data).mean(0), color="0.6", label="student, $t = 0$")
middle.plot(data, neuron(teacher, data).mean(0), "k", label="teacher")
middle.plot(data, neuron(run.final.x, data).mean(0), "C3--", label=f"student, $t = {run.times[-1]:g}$")
middle.set(xlabel="$x$", title="functions")
middle.legend(fontsize=8)
kinks = lambda z: -z[:, 2] / z[:, 1]  # noqa: E731
for z, color, size in ((student, "0.6", 8), (run.final.x, "C3", 8), (teacher, "k", 50)):
    right.scatter(kinks(z), z[:, 0] * z[:, 1].abs(), s=size, color=color, marker="*" if size > 8 else "o")
right.set(xlim=(-2.2, 2.2), xlabel="position of the kink, $-b/w$", ylabel="its strength, $a|w|$", title="neurons")
plt.show()
