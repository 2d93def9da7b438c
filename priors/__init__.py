"""What we believe before data: infinite-width kernels, priors over functions, task priors."""
