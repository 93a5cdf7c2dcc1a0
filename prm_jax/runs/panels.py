"""The panels of the standard pictures of a run, and which of them tell nothing about a given run."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

NOISE = 1e-5
"""Values of a quantity that vanishes in theory are rounding noise when none of them is larger than this."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """The panel of one metric in a picture.

    Attributes:
      metric: its "phase/name".
      title: description.
      label: unit, shown on the vertical axis.
      percent: a fraction, drawn in percent.
      unit: a number within [0, 1]; the axis shows the whole interval.
      chance: value reached by guessing, drawn as a reference line.
      log: use a logarithmic axis where values span more than a factor of 20.
      vanishes: the metric is constant or zero under some options, and the panel is then omitted.
      off_policy: the metric is meaningful only where the policy is updated more than once per batch.
    """

    metric: str
    title: str
    label: str = ""
    percent: bool = False
    unit: bool = False
    chance: float | None = None
    log: bool = False
    vanishes: bool = False
    off_policy: bool = False

    def tells_nothing(self, curves: Sequence[np.ndarray], is_on_policy: bool) -> bool:
        """Whether the panel would show a constant or rounding noise.

        Args:
          curves: values of the metric, one array per line.
          is_on_policy: whether all runs update the policy once per batch.
        """
        if self.off_policy and is_on_policy:
            return True
        values = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
        return self.vanishes and (np.abs(values).max() < NOISE or (len(values) > 1 and np.ptp(values) == 0))


def on_policy(config: Mapping[str, str]) -> bool:
    """Whether a run's configuration updates the policy once per batch.

    The policy that is updated is then the one that sampled: ratios are 1, the divergence between the two is 0, and the
    value of the surrogate loss is the mean advantage, which says nothing about progress. A custom loss may differ.
    """
    once = config.get("policy.epochs") == "1" and config.get("policy.minibatches") == "1"
    return once and ":" not in config.get("policy.loss", "")


ACCURACY = (
    Panel("eval/greedy_accuracy", "Greedy accuracy", percent=True),
    Panel("eval/sampled_accuracy", "Sampled accuracy", percent=True),
    Panel("eval/greedy_step_accuracy", "Greedy step accuracy", percent=True),
    Panel("eval/sampled_step_accuracy", "Sampled step accuracy", percent=True),
    Panel("eval/step_accuracy", "Step accuracy", percent=True),
)
PRM = (
    Panel("prm/pairwise_accuracy", "PRM pairwise accuracy", percent=True, chance=0.5),
    Panel("prm/gate", "Trust gate of the process rewards", unit=True, vanishes=True),
    Panel("prm_eval/first_error_f1", "First wrong step: F1", unit=True),
    Panel("prm_eval/step_auc", "Correct against wrong steps: AUC", unit=True, chance=0.5),
    Panel("prm/loss", "PRM loss"),
    Panel("prm/reward_abs", "Process reward, mean absolute value"),
)
TRAINING = (
    Panel("rollout/solve_rate", "Solve rate of training responses", percent=True),
    Panel("rollout/kept_groups", "Prompts kept by the filter", percent=True, vanishes=True),
    Panel("rollout/length", "Response length", "tokens"),
    Panel("policy/loss", "Policy loss", vanishes=True, off_policy=True),
    Panel("policy/entropy", "Policy entropy", "nats per token"),
    Panel("policy/kl", "KL to the reference policy", "nats per token", vanishes=True),
    Panel("policy/approx_kl", "KL to the sampling policy", "nats per token", vanishes=True, off_policy=True),
    Panel("policy/grad_norm", "Policy gradient norm", log=True),
    Panel("time/step_seconds", "Time per step", "seconds", log=True),
)
PICTURES = {"accuracy": ACCURACY, "prm": PRM, "training": TRAINING}
"""File name -> panels of the standard pictures; panels without data are omitted."""
