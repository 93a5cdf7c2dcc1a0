"""A callback of your own: log the ratio of two metrics, and stop once the task is solved.

prm-jax train --preset smoke --callbacks examples/callback.py:watch
"""

from prm_jax.prime import Event


def watch(event: Event) -> None:
    """Called after every step, whose metrics it may add to, and after every evaluation."""
    if event.kind == "step" and event.metrics.get("policy/grad_norm"):
        event.metrics["own/length_per_norm"] = event.metrics["rollout/length"] / event.metrics["policy/grad_norm"]
    if event.kind == "evaluation" and event.metrics.get("eval/greedy_accuracy", 0.0) >= 0.99:
        event.stop("99 % of the problems are solved")
