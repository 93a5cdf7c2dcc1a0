"""The subcommands of ``prm-jax``: each module has a dataclass ``Options`` and a function ``run(options)``.

Their top levels import nothing heavy, so that help and usage errors are immediate; ``run`` imports what it needs.
"""
