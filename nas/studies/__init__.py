"""Running, storing and reporting searches."""
