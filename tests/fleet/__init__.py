"""A fleet of gateway processes on one store, under traffic, while the candidate fails in every way that is known."""
