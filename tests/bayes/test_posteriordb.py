"""Models of posteriordb, written out in Pyro, against the moments of its reference draws.

Means and their Monte Carlo errors are posteriordb's (github.com/stan-dev/posteriordb, 10,000 draws
of Stan each); standard deviations are those of stan-dev/stat_comp_benchmarks, of 1,000,000 draws of
the same models and data, but for `kidscore`, which has closed forms. The data are rounded to five
digits. A fault that Stan has too cannot
be seen here.
"""

import dataclasses
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayes import HMC, MCLMC, ChEES
from bayes.inference.adaptation import Rescue

AR = torch.tensor(
    [
        float(value)
        for value in """
0.72939 0.82976 0.78395 1.02596 0.96968 1.08289 0.70639 0.77692 0.4618 0.6386 0.37423 0.0855
-0.12601 -0.29342 -0.26173 -0.33592 -0.50199 -0.64174 -0.62246 -0.8509 -0.86784 -1.01639
-1.05589 -0.96948 -1.06725 -0.8431 -0.6827 -0.44466 -0.59204 -0.51057 -0.41789 -0.17362 -0.10725
-0.0355 0.34322 0.38419 0.49609 0.70845 0.59628 0.64144 0.65132 0.59422 0.77794 0.73078 0.48225
0.53204 0.4851 0.36855 0.35333 0.16337 0.25304 0.00066 -0.01577 -0.01449 -0.02526 -0.00563
-0.31892 -0.02278 -0.07169 -0.18502 -0.23501 -0.12431 -0.13049 -0.19948 0.07757 -0.16285 0.02346
-0.06468 0.08453 0.05502 0.14174 0.08766 -0.05285 0.06952 -0.10145 -0.06888 -0.25121 -0.39029
-0.16763 -0.27916 -0.31213 -0.28655 -0.41177 -0.49821 -0.50285 -0.7394 -0.24923 -0.47102
-0.46457 -0.44571 -0.28442 -0.02278 -0.06055 0.06623 0.14052 0.27634 0.37722 0.6103 0.88087
0.78852 0.80136 0.66097 0.80977 0.82051 0.98076 0.72404 0.93186 0.85049 0.48059 0.50858 0.41611
0.31467 -0.02815 -0.0717 -0.14392 -0.52237 -0.40336 -0.68863 -0.69472 -0.64966 -0.9927 -0.93541
-0.89699 -0.97815 -1.06684 -0.95356 -0.75708 -0.84258 -0.69777 -0.31656 -0.38782 -0.06712
-0.03852 0.08956 0.14546 0.18521 0.39561 0.68526 0.55631 0.71084 0.74628 0.66845 0.69365 0.738
0.66277 0.69009 0.68073 0.37332 0.45367 0.31377 0.45003 -0.03379 0.00473 -0.08569 0.10825
-0.13983 -0.04297 -0.45416 -0.33264 -0.23335 -0.20146 -0.18268 -0.22788 -0.04154 -0.12101
-0.07244 -0.0482 0.15801 0.05839 -0.11176 -0.03817 0.17898 -0.01484 0.0501 -0.19806 -0.14001
-0.17467 -0.17679 -0.21541 -0.41447 -0.34054 -0.44828 -0.65712 -0.35464 -0.52571 -0.65644
-0.52453 -0.47587 -0.36313 -0.33669 -0.32544 0.00067 0.20804 0.00232 0.11248 0.3494 0.4717
0.59066 0.60486 0.9332
""".split()
    ],
    dtype=torch.float64,
)
GARCH = torch.tensor(
    [
        float(value)
        for value in """
4.93767 4.88992 5.02546 4.35568 3.83574 6.42512 6.2175 5.37894 6.12027 5.11431 7.62457 -1.8588
5.50934 6.44933 5.16342 3.44639 4.16985 4.10647 4.36148 5.95805 4.04596 3.12687 3.00143 7.25685
0.61811 -0.15292 9.15201 4.29292 8.47977 3.47121 -0.78446 6.36437 7.39246 7.44822 7.9463 7.45201
4.91607 7.07837 2.27557 4.33385 5.33567 7.71335 3.84656 6.52277 3.80731 5.58548 4.01715 3.99055
5.35642 5.63898 5.88953 6.04309 7.01664 5.23985 7.57048 7.13718 5.06474 3.92939 3.45542 4.32754
8.21225 5.41823 4.78418 3.98405 8.26915 3.33761 2.06569 1.52754 1.83133 3.42726 10.6729 9.1517
5.02377 9.33701 6.24137 6.04951 5.17506 3.58392 2.59548 4.83907 3.96026 5.82759 4.23546 7.22894
2.60125 4.69064 1.91717 4.61001 5.47954 5.15997 6.18194 4.34441 4.41346 6.68698 3.349 6.8327
4.19524 6.78734 3.38096 6.91863 3.68888 6.26224 3.44745 0.56215 12.0984 -3.94763 -3.21519
8.91902 6.99252 8.6113 0.7973 0.74076 6.65044 -1.01025 6.01005 1.05968 6.82927 4.16368 5.12177
5.35884 2.9457 3.09788 4.25886 7.36762 2.14699 7.37539 4.82724 4.51204 5.73045 4.4194 2.75591
4.36447 7.16011 8.29842 2.81665 3.91797 9.79525 -4.72429 5.45487 6.54469 6.59734 6.2416 3.03969
1.20935 5.26368 8.64379 7.49106 6.47364 4.52511 6.72267 4.93413 4.15661 4.51008 6.29507 3.19827
5.09675 3.26617 5.53758 6.24419 7.20513 3.07049 2.74548 0.98196 5.28944 3.86379 3.21331 5.91417
7.21224 5.72359 6.87126 2.78265 3.914 5.87148 4.82253 6.44606 4.90139 4.76092 6.56447 2.61578
7.2306 4.30689 3.94182 8.92725 3.42834 1.16723 0.85435 12.1461 -6.35075 7.70559 4.51366 4.92292
6.46219 0.28569 3.6448 6.24383 7.63031 8.84032 6.91529 4.1049 5.2848
""".split()
    ],
    dtype=torch.float64,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def eight_schools_noncentered():
    y = tensor(28.0, 8, -3, 7, -1, 1, 18, 12)
    s = tensor(15.0, 10, 16, 11, 9, 11, 10, 18)

    def model():
        mu = pyro.sample("mu", dist.Normal(scalar(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(scalar(5.0)))
        with pyro.plate("schools", 8):
            raw = pyro.sample("raw", dist.Normal(scalar(0.0), 1.0))
            pyro.sample("y", dist.Normal(mu + tau * raw, s), obs=y)

    def quantities(draws):
        mu, tau = draws["mu"].unsqueeze(-1), draws["tau"].unsqueeze(-1)
        return torch.cat([mu, tau, mu + tau * draws["raw"]], -1)

    mean = [4.41051833695493, 3.60205952364059, 6.15050229334425, 4.9395811407422]
    mean += [3.90590609001582, 4.79601675138494, 3.6144363246799, 4.0511475789675]
    mean += [6.31716975886893, 4.88399694353288]
    error = [0.0330, 0.0319, 0.0557, 0.0462, 0.0542, 0.0475, 0.0461, 0.0485, 0.0499, 0.0543]
    std = [3.315, 3.2256, 5.5994, 4.6807, 5.2601, 4.7823, 4.6533, 4.8295, 5.0765, 5.2879]
    return model, quantities, mean, error, std


def gp_regr():
    x = torch.arange(-10, 11, 2, dtype=torch.float64)
    y = tensor(4.75906, 1.59423, 2.99548, 5.27501, 1.66472, 2.24347, 2.8914)
    y = torch.cat([y, tensor(4.08681, 4.60588, 0.802364, 3.92136)])
    square = (x[:, None] - x).square()

    def model():
        rho = pyro.sample("rho", dist.Gamma(scalar(25.0), scalar(4.0)))
        alpha = pyro.sample("alpha", dist.HalfNormal(scalar(2.0)))
        sigma = pyro.sample("sigma", dist.HalfNormal(scalar(1.0)))  # of the variance
        covariance = alpha.square() * (-0.5 * square / rho.square()).exp()
        root = torch.linalg.cholesky(covariance + sigma * torch.eye(11, dtype=torch.float64))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=root), obs=y)

    def quantities(draws):
        return torch.stack([draws["rho"], draws["alpha"], draws["sigma"]], -1)

    mean = [6.87434817782581, 2.4423998398757, 1.82873106572797]
    return model, quantities, mean, [0.0128, 0.00776, 0.00503], [1.2881, 0.78935, 0.5]


def gp_pois_regr():
    """Most starts are where exp(f) is astronomic, from where a step throws some far out."""
    x = torch.arange(-10, 11, 2, dtype=torch.float64)
    counts = tensor(40.0, 37, 29, 12, 4, 3, 9, 19, 77, 82, 33)
    square = (x[:, None] - x).square()

    def functions(rho, alpha, white):
        covariance = alpha.square() * (-0.5 * square / rho.square()).exp()
        root = torch.linalg.cholesky(covariance + 1e-10 * torch.eye(11, dtype=torch.float64))
        return (root @ white.unsqueeze(-1)).squeeze(-1)

    def model():
        rho = pyro.sample("rho", dist.Gamma(scalar(25.0), scalar(4.0)))
        alpha = pyro.sample("alpha", dist.HalfNormal(scalar(2.0)))
        white = pyro.sample("white", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
        rate = functions(rho, alpha, white).exp()
        pyro.sample("k", dist.Poisson(rate).to_event(1), obs=counts)

    def quantities(draws):
        rho, alpha = draws["rho"].unsqueeze(-1), draws["alpha"].unsqueeze(-1)
        f = functions(rho.unsqueeze(-1), alpha.unsqueeze(-1), draws["white"])
        return torch.cat([rho, alpha, f], -1)

    mean = [5.66652941021132, 2.92134418379513, 3.63574060402204, 3.6886122237674]
    mean += [3.25466563615865, 2.40916833234055, 1.56153312269637, 1.2952616184373]
    mean += [1.93120329718491, 3.17960664748282, 4.25292132252809, 4.41509940077751]
    mean += [3.50681694306204]
    error = [0.00677, 0.00792, 0.00150, 0.00127, 0.00144, 0.00196, 0.00244, 0.00266, 0.00225]
    error += [0.00144, 0.000969, 0.000925, 0.00163]
    std = [0.67644, 0.78642, 0.1548, 0.12724, 0.14248, 0.19445, 0.24534, 0.26498, 0.22342]
    std += [0.1435, 0.096164, 0.092732, 0.16253]
    return model, quantities, mean, error, std


def ar_k():
    rows = AR.unfold(0, 6, 1)
    before, now = rows[:, :5].flip(-1), rows[:, 5]

    def model():
        alpha = pyro.sample("alpha", dist.Normal(scalar(0.0), 10.0))
        beta = pyro.sample("beta", dist.Normal(tensor(0.0, 0, 0, 0, 0), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(scalar(2.5)))
        pyro.sample("y", dist.Normal(alpha + before @ beta, sigma).to_event(1), obs=now)

    def quantities(draws):
        alpha, sigma = draws["alpha"].unsqueeze(-1), draws["sigma"].unsqueeze(-1)
        return torch.cat([alpha, draws["beta"], sigma], -1)

    mean = [-0.000718650251261263, 0.692163279812727, 0.439043080115602, 0.105816025140126]
    mean += [-0.0354350382459401, -0.301512065609031, 0.150566659032913]
    error = [0.000106, 0.000722, 0.000908, 0.000923, 0.000854, 0.000700, 0.0000797]
    std = [0.010804, 0.070665, 0.086986, 0.09203, 0.086731, 0.070036, 0.0078006]
    return model, quantities, mean, error, std


def flat(name, start):
    """A site without a prior; its distribution, where chains start, is divided out."""
    value = pyro.sample(name, start)
    pyro.factor(f"{name}_flat", -start.log_prob(value))
    return value


def garch11():
    def model():
        mu = flat("mu", dist.Normal(scalar(5.0), 1.0))
        alpha0 = flat("alpha0", dist.LogNormal(scalar(0.0), 1.0))
        alpha1 = pyro.sample("alpha1", dist.Uniform(scalar(0.0), 1.0))
        share = pyro.sample("share", dist.Uniform(scalar(0.0), 1.0))
        pyro.factor("flat", torch.log1p(-alpha1))  # in beta1, of which share is a part
        beta1 = share * (1 - alpha1)
        variance = [scalar(0.25) + 0 * mu]
        for square in (GARCH[:-1] - mu).square().unbind(-1):
            variance.append(alpha0 + alpha1 * square + beta1 * variance[-1])
        std = torch.stack(variance, -1).sqrt()
        pyro.sample("y", dist.Normal(mu, std).to_event(1), obs=GARCH)

    def quantities(draws):
        alpha1 = draws["alpha1"]
        beta1 = draws["share"] * (1 - alpha1)
        return torch.stack([draws["mu"], draws["alpha0"], alpha1, beta1], -1)

    mean = [5.05001794660039, 1.47075973803898, 0.567284282813872, 0.293024546082117]
    error, std = [0.00124, 0.00568, 0.00128, 0.00125], [0.123, 0.56721, 0.12566, 0.12262]
    return model, quantities, mean, error, std


def kidscore():
    """Scores of children by whether the mother finished school; 434 of them as their sums."""
    number, total, squares = tensor(93, 341), tensor(7212, 30458), tensor(606160, 2843878)

    def model():
        first = flat("first", dist.Normal(scalar(80.0), 10.0))
        step = flat("step", dist.Normal(scalar(0.0), 10.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(scalar(2.5)))
        mean = torch.stack([first, first + step], -1)
        residual = (squares - 2 * mean * total + number * mean.square()).sum(-1)
        pyro.factor("scores", -434 * sigma.log() - residual / (2 * sigma.square()))

    def quantities(draws):
        return torch.stack([draws["first"], draws["step"], draws["sigma"]], -1)

    mean = [77.5146147479399, 11.8131711144596, 19.8659904467415]
    error = [0.0204683888141156, 0.0231400613335252, 0.00675065926286156]
    # with sigma by quadrature, and E[sigma^2] times 1 / n and 1 / n + 1 / n'
    return model, quantities, mean, error, [2.06107, 2.32520, 0.67679]


def compared(method, posterior):
    """Means off in standard errors, ratios of deviations, and divergences."""
    model, quantities, mean, error, std = posterior()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This run of", UserWarning)
        draws = method.run(model, torch.zeros(1, dtype=torch.float64))
    found = quantities(draws.samples)
    each = found.mean(1)
    own = each.std(0) / len(each) ** 0.5
    off = (each.mean(0) - tensor(*mean)) / (own.square() + tensor(*error).square()).sqrt()
    return off, found.flatten(0, 1).std(0) / tensor(*std), int(draws.stats["diverging"].sum())


@pytest.mark.slow
@pytest.mark.parametrize("posterior", [gp_regr, ar_k, kidscore])
def test_published_means(posterior):
    """The short form; eight schools are among the fast tests of samplers."""
    method = ChEES(num_samples=20, num_warmup=80, num_chains=64, progress=False)
    off, _, _ = compared(method, posterior)
    assert float(off.abs().max()) < 4


@pytest.mark.slow
@pytest.mark.parametrize("rescued", [True, False])
def test_starts_far_out_leave_no_trace(rescued, monkeypatch):
    """A short run from starts far out; errors of a standard deviation are of 64 chains."""
    if not rescued:
        monkeypatch.setattr(Rescue, "_FAR", float("inf"))
    method = ChEES(num_samples=40, num_warmup=100, num_chains=64, progress=False)
    off, ratio, _ = compared(method, gp_pois_regr)
    assert (float(ratio.max()) < 1.2) == rescued
    if rescued:
        assert float(off.abs().max()) < 4
        assert float(ratio.min()) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "posterior"),
    [
        (ChEES(target_accept_prob=0.95), eight_schools_noncentered),
        (ChEES(target_accept_prob=0.95), gp_regr),
        (ChEES(target_accept_prob=0.95), ar_k),
        (ChEES(target_accept_prob=0.95), garch11),
        (ChEES(target_accept_prob=0.95), kidscore),
        (HMC(target_accept_prob=0.95), eight_schools_noncentered),
        (MCLMC(adjusted=True), eight_schools_noncentered),
        (MCLMC(adjusted=True), gp_regr),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_published_moments(method, posterior):
    """Means within four errors, deviations within 5%, and no divergence."""
    settings = {"num_samples": 150, "num_warmup": 150, "num_chains": 128, "progress": False}
    off, ratio, diverging = compared(dataclasses.replace(method, **settings), posterior)
    assert float(off.abs().max()) < 4
    assert float(ratio.max()) < 1.05
    assert float(ratio.min()) > 0.95
    assert diverging == 0
