"""What every posterior answers, whichever engine made it."""
