"""``python -m prm_jax`` is ``prm-jax``."""

import sys

from prm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
