"""Random sequences of steps on two sides, compared after every step."""
