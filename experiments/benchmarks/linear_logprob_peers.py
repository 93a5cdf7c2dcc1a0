"""What a user would take instead of ``prm_jax.pallas``: each as a contender of ``linear_logprob``.

Contenders whose package cannot be imported are left out, and named. On a GPU: torch, torch.compile, Liger-Kernel
(`pip install torch liger-kernel`) and Cut Cross-Entropy (`pip install cut-cross-entropy`); anywhere tokamax
(`pip install tokamax`).
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.linear_logprob import Arrays, Contender, jax_contender


def naive_logprob(hidden: jax.Array, head: jax.Array, tokens: jax.Array, mask: jax.Array, *, f32: bool) -> jax.Array:
    """All logits, log-softmax, take: the usual way."""
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32 if f32 else None)
    logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.where(mask, jnp.take_along_axis(logp, tokens[:, None], axis=1)[:, 0], 0.0)


def naive(arrays: Arrays, mode: str) -> Iterator[Contender]:
    """Plain XLA, with float32 logits and with logits in the inputs' dtype."""
    for f32 in (True, False) if arrays.hidden.dtype != jnp.float32 else (True,):

        def logprob(hidden: Any, head: Any, tokens: Any, mask: Any, f32: bool = f32) -> jax.Array:
            return naive_logprob(hidden, head, tokens, mask, f32=f32)

        yield jax_contender(f"naive XLA, {'float32' if f32 else 'narrow'} logits", logprob, arrays, mode)


def tokamax(arrays: Arrays, mode: str) -> Iterator[Contender]:
    """Its implementations for this platform; none knows masks, so all tokens are computed."""
    op = importlib.import_module("tokamax").linear_softmax_cross_entropy_loss
    names = ["xla", "chunked_xla"] + (["mosaic_tpu"] if jax.default_backend() == "tpu" else [])
    for name in names:

        def logprob(hidden: Any, head: Any, tokens: Any, mask: Any, name: str = name) -> jax.Array:
            loss = op(hidden, tokens, head.T, reduction="none", implementation=name)
            return jnp.where(mask, -loss, 0.0)

        yield jax_contender(f"tokamax {name}", logprob, arrays, mode)


def torch_contenders(arrays: Arrays, mode: str) -> Iterator[Contender]:
    """Torch's own, eager and compiled."""
    torch = importlib.import_module("torch")

    def loss(hidden: Any, head: Any, tokens: Any) -> Any:
        logits = (hidden @ head.T).float()
        return torch.nn.functional.cross_entropy(logits, tokens, reduction="none")

    yield _torch("torch", loss, arrays, mode)
    yield _torch("torch.compile", torch.compile(loss), arrays, mode)


def liger(arrays: Arrays, mode: str) -> Iterator[Contender]:
    """Liger-Kernel's fused linear cross-entropy, sums; its forward pass makes gradients."""
    module = importlib.import_module("liger_kernel.transformers")
    op = module.LigerFusedLinearCrossEntropyLoss(reduction="sum")
    yield _torch("Liger-Kernel", lambda hidden, head, tokens: op(head, hidden, tokens), arrays, mode)


def cut_cross_entropy(arrays: Arrays, mode: str) -> Iterator[Contender]:
    """Apple's, exact and with its default filter of small gradients."""
    op = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    for name in ("cce_exact", "cce"):

        def loss(hidden: Any, head: Any, tokens: Any, name: str = name) -> Any:
            return op(hidden, head, tokens, reduction="none", impl=name)

        yield _torch(f"Cut Cross-Entropy {name}", loss, arrays, mode)


def _torch(name: str, loss: Callable[..., Any], arrays: Arrays, mode: str) -> Contender:
    """A contender from a function of torch tensors; masked tokens are ignored where it knows how (label -100)."""
    torch = importlib.import_module("torch")
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[arrays.hidden.dtype.name]

    def tensor(x: Any, dtype: Any) -> Any:
        return torch.from_numpy(np.asarray(x.astype(jnp.float32) if dtype.is_floating_point else x)).to("cuda", dtype)

    labels = jnp.where(arrays.mask, arrays.tokens, -100)
    hidden, head, tokens = tensor(arrays.hidden, dtype), tensor(arrays.head, dtype), tensor(labels, torch.int64)
    needs = mode == "gradient"
    hidden.requires_grad_(needs)
    head.requires_grad_(needs)

    def call() -> Any:
        with torch.set_grad_enabled(needs):
            out = loss(hidden, head, tokens)
            if not needs:
                return -out
            return torch.autograd.grad(-out.sum(), (hidden, head))

    torch.cuda.synchronize()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    returned = sum(x.numel() * x.element_size() for x in (result if isinstance(result, tuple) else (result,)))
    peak = torch.cuda.max_memory_allocated() - base - returned

    def wait(out: Any) -> Any:
        torch.cuda.synchronize()
        return out

    def numbers(out: Any) -> Any:
        parts = out if isinstance(out, tuple) else (out,)
        return [x.detach().float().cpu().numpy() for x in parts]

    return Contender(name, call, wait, numbers, peak)


PEERS = {
    "naive XLA": (naive, ""),
    "tokamax": (tokamax, "pip install tokamax"),
    "torch": (torch_contenders, "pip install torch"),
    "Liger-Kernel": (liger, "pip install liger-kernel"),
    "Cut Cross-Entropy": (cut_cross_entropy, "pip install cut-cross-entropy"),
}
"""Name -> (contenders for arrays and mode, how to install it)."""
ON_GPU_ONLY = ("torch", "Liger-Kernel", "Cut Cross-Entropy")
