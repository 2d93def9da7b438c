"""What we believe after data: engines that condition a prior on observations."""
