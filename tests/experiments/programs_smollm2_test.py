"""The tables of SmolLM2 on easy functions, from metrics as runs leave them."""

import json

from experiments.programs.smollm2_training import tables


def test_means_over_seeds_and_differences_from_the_base(tmp_path):
    runs, none = [], {"rollout/unanswered": 0.5}
    for seed, after in enumerate((0.5, 0.7)):
        rows = [
            {"step": 0, "eval/greedy_accuracy": 0.4},
            {"step": 1, "rollout/solve_rate": 0.2 + 0.1 * seed, "rollout/truncated": 0.5, **none},
            {"step": 2, "rollout/solve_rate": 0.4, "rollout/truncated": 0.25, **none, "eval/greedy_accuracy": after},
        ]
        run = tmp_path / f"seed{seed}"
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run)
    held_out, training = tables(0.2, [0.3, 0.5], runs).values()
    assert abs(held_out["difference"]["sampled"] - 0.2) < 1e-9 and abs(held_out["difference"]["greedy"] - 0.2) < 1e-9
    assert held_out["before"]["sampled"] == 0.2 and abs(held_out["after"]["greedy"] - 0.6) < 1e-9
    assert [round(row["solve rate of the step's own samples"], 3) for row in training.values()] == [0.25, 0.4]
