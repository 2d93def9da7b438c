"""One file per question; the competitor runs beside us; results are JSON in `results/`."""
