"""Activations times a matrix of packed integers, which is expanded inside the kernel."""
