"""Inputs that nobody writes on purpose, and what galsep makes of them."""
