"""Online implicit process rewards (PRIME): the loop, its step, and everything that goes into it."""
