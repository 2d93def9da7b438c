"""Priors over whole data sets, from which a prior-data fitted network learns."""
