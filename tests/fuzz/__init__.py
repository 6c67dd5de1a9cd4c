"""`scripts/fuzz`: a gateway under random and mutated requests, and in front of a back end that answers nonsense."""
