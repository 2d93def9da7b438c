"""Stand-in."""
from priors.activations import _mehler, _moment


def gaussian_mean(f, q, *, parameters=(), kinks=()):
    p = [x[..., None].double() for x in parameters]
    return _moment(lambda x: f(x, *p), q)


def gaussian_expectation(f, g, q1, q2, c, *, f_parameters=(), g_parameters=(), f_kinks=(), g_kinks=()):
    a = [x[..., None].double() for x in f_parameters]
    b = [x[..., None].double() for x in g_parameters]
    return _mehler(lambda x: f(x, *a), lambda x: g(x, *b), q1, q2, c)
