"""Tiles of the kernels by device, pass, dtype, bucket of D and bucket of T.

Entries are (token block, vocab block); those of "h100" are per warpgroup. None of them was timed on its device: they
come from static schedules, register counts and memory limits of the compilers.
``experiments/benchmarks/linear_logprob.py --tune`` remeasures them.
"""

Key = tuple[str, str, str, int, int]

TABLE: dict[Key, tuple[int, int]] = {
    ("v5e", "forward", "bfloat16", 2048, 16384): (512, 512),
    ("v5e", "forward", "bfloat16", 4096, 16384): (512, 512),
    ("v5e", "backward", "bfloat16", 2048, 16384): (512, 512),
    ("v5e", "backward", "bfloat16", 4096, 16384): (512, 512),
    ("v5p", "forward", "bfloat16", 2048, 16384): (512, 512),
    ("v5p", "forward", "bfloat16", 4096, 16384): (512, 512),
    ("v5p", "backward", "bfloat16", 2048, 16384): (256, 1024),
    ("v5p", "backward", "bfloat16", 4096, 16384): (256, 512),
    ("v6e", "forward", "bfloat16", 2048, 16384): (512, 512),
    ("v6e", "forward", "bfloat16", 4096, 16384): (512, 512),
    ("v6e", "backward", "bfloat16", 2048, 16384): (512, 1024),
    ("v6e", "backward", "bfloat16", 4096, 16384): (256, 1024),
    ("7x", "forward", "bfloat16", 2048, 16384): (512, 512),
    ("7x", "forward", "bfloat16", 4096, 16384): (512, 512),
    ("7x", "backward", "bfloat16", 2048, 16384): (256, 1024),
    ("7x", "backward", "bfloat16", 4096, 16384): (256, 512),
    ("h100", "forward", "bfloat16", 2048, 16384): (64, 256),
    ("h100", "forward", "bfloat16", 4096, 16384): (64, 256),
}
