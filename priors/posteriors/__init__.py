"""The questions that every posterior answers, whichever engine made it."""
