"""Values of a trial while it runs, and stopping it early."""
