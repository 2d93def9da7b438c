"""What to try next, given a surrogate: acquisition functions and their maximisation."""
