"""The walk of docs/prm.md in its smallest size: a value model of rollouts, evaluation, a rewarded policy, a search.

Labels of steps by rollouts need a policy that is sometimes right; tests/search has them.
"""

import json

import pytest

from prm_jax import cli

TINY = (
    "--steps 1 --sft.steps 2 --no-baseline --no-plots --eval.every 0 --eval.problems 2 --eval.prm-problems 0 "
    "--rollout.prompts-per-step 2 --rollout.samples-per-prompt 2 --prm.pretrain-rollouts 0 --rollout.filter none"
).split()
TASK = ["--task", "carry", "--task-options", "min_operands", "2", "max_operands", "2", "num_eval", "16"]


@pytest.mark.slow
def test_from_rollouts_to_a_rewarded_policy(tmp_path):
    def call(*words):
        assert cli.main([str(word) for word in words]) == 0

    small = ["--preset", "smoke", *TINY]
    call("train", *small, "--run-dir", tmp_path / "tiny")
    policy, online = tmp_path / "tiny" / "policy", tmp_path / "tiny" / "prm"
    rollouts, values = tmp_path / "rollouts.jsonl", tmp_path / "values"
    found = ["--problems", "4", "--out", tmp_path / "found.jsonl", "--solutions", rollouts]
    call("search", policy, *TASK, "--method", "majority", "--samples", "4", *found)
    rows = ["--text.pieces", "prompt", "--text.separator", "", "--text.end", "--data.eval-fraction", "0"]
    model = ["--model.path", policy, "--prm.kind", "value", "--train.learning-rate", "1e-3", "--no-plots"]
    call("train-prm", "--data.path", rollouts, *model, *rows, "--max-steps", "2", "--run-dir", values)
    call("eval", rollouts, "--model", values / "model", "--out", tmp_path / "judged", "--resamples", "0")
    judged = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert set(judged["subsets"]) == {"rollouts"} and judged["step_score"] == "value"
    call("train", *small, "--reward.source", "model", "--reward.path", values / "model", "--run-dir", tmp_path / "new")
    for prm in (values / "model", online):
        call("search", policy, *TASK, "--problems", "2", "--samples", "2", "--method", "best_of_n", "--scorer", prm)
    call("score", online, rollouts, "--out", tmp_path / "scores")
    lines = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    assert all(line["score"] == pytest.approx(sum(line["scores"]), abs=1e-6) for line in lines)
