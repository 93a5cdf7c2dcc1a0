"""The PyTorch side of `reward_path.py`: the released formulas of PRIME (arXiv 2502.01456), eager, on the CPU.

Run by `reward_path.py` under an interpreter with torch; needs nothing of this repository but that file's worker loop.
"""

import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from reward_path import SAMPLES, inputs, serve


def returns_to_go(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1).cumsum(1).flip(1)


def baseline_by_loop(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Prompt by prompt, the valid entries picked by the mask, as the released codes have it."""
    out = torch.where(mask, rewards, 0.0)
    for start in range(0, len(out), SAMPLES):
        rows = slice(start, start + SAMPLES)
        means = torch.stack([out[i][mask[i]].mean() for i in range(start, start + SAMPLES)])
        baseline = means.sum() / (SAMPLES - 1)
        out[rows][mask[rows]] = out[rows][mask[rows]] * (SAMPLES / (SAMPLES - 1)) - baseline
    return out


def baseline_vectorised(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same without the loop, for groups that lie together."""
    out = torch.where(mask, rewards, 0.0)
    means = out.sum(1) / mask.sum(1)
    baseline = means.view(-1, SAMPLES).sum(1).repeat_interleave(SAMPLES) / (SAMPLES - 1)
    return torch.where(mask, out * (SAMPLES / (SAMPLES - 1)) - baseline[:, None], 0.0)


def whiten(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = (((x - mean) ** 2) * mask).sum() / count * (count / (count - 1))
    return (x - mean) * torch.rsqrt(variance + 1e-8)


def main() -> None:
    rows, tokens, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    given = {name: torch.from_numpy(x) for name, x in inputs(rows, tokens).items()}
    centre = baseline_by_loop if kind == "loop" else baseline_vectorised

    @torch.no_grad()
    def path(logp: torch.Tensor, ref_logp: torch.Tensor, mask: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
        rewards = (logp - ref_logp) * mask
        rewards = rewards / (returns_to_go(rewards).abs().max() + 1e-6)
        last = torch.zeros_like(rewards)
        last[torch.arange(len(mask)), mask.sum(1) - 1] = outcome
        ends = torch.zeros_like(mask)
        ends[torch.arange(len(mask)), mask.sum(1) - 1] = True
        return whiten(returns_to_go(centre(rewards, mask)) + returns_to_go(centre(last, ends)), mask)

    path(**{name: x[: 2 * SAMPLES] for name, x in given.items()})  # loads what torch loads late
    serve(lambda: path(**given), lambda target: np.save(target, path(**given).numpy()))


if __name__ == "__main__":
    main()
