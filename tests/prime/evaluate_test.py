"""Evaluation: metrics of a policy, and a PRM against exact step labels, on cases worked out by hand."""

import numpy as np

from prm_jax.data.carry import CarryTask
from prm_jax.prime.collect import Responses
from prm_jax.prime.evaluate import PRMProbe, policy_metrics


def responses(task: CarryTask, texts: list[str]) -> Responses:
    problems = [task.train[0]] * len(texts)
    rows = len(texts)
    return Responses(
        problems=problems,
        tokens=np.zeros((rows, 4), np.int32),
        mask=np.ones((rows, 4), bool),
        step_ids=np.zeros((rows, 4), np.int32),
        texts=texts,
        outcome=np.array([task.verify(p, t) for p, t in zip(problems, texts, strict=True)], np.float32),
        usable=np.ones(rows, bool),
        finished=np.ones(rows, bool),
        unanswered=np.zeros(rows, bool),
    )


def texts_of(task: CarryTask) -> tuple[str, str]:
    """(the right response, one whose second step is wrong and the rest follows)."""
    right = task.solve(task.train[0])
    first, second, *rest = right.replace("#", ";#").split(";")
    lhs, total = second.split("=")
    wrong = ";".join([first, f"{lhs}={int(total) + 1}"])
    return right, wrong + f"#{int(total) + 1}"


def test_accuracy_and_step_accuracy():
    task = CarryTask(3, 3, num_train=4, num_eval=4)
    right, wrong = texts_of(task)
    found = policy_metrics(task, responses(task, [right, wrong, wrong, right]))
    assert found["accuracy"] == 0.5
    # three steps each; the wrong one has its first right, its second and its answer wrong
    assert found["step_accuracy"] == (3 + 1 + 1 + 3) / 12
    assert found["finished"] == 1.0 and found["length"] == 4.0


def test_probe_finds_the_first_error_and_scores_the_second_half_only():
    task = CarryTask(3, 3, num_train=4, num_eval=4)
    right, wrong = texts_of(task)
    probe = PRMProbe.build(task, responses(task, [right, wrong, right, wrong]))
    np.testing.assert_array_equal(probe.first_error, [-1, 1, -1, 1])
    np.testing.assert_array_equal(probe.labels[1], [True, False, False])
    scores = np.array([[0.1, 0.2, 0.1], [0.1, -1.0, -2.0], [0.3, 0.2, 0.1], [0.2, -0.9, 0.0]])
    found = probe.evaluate(scores)
    assert found["first_error_f1"] == 1.0 and found["step_auc"] == 1.0 and found["outcome_auc"] == 1.0
    blind = probe.evaluate(np.zeros((4, 3)))
    assert blind["step_auc"] == 0.5 and blind["first_error_f1"] == 0.0
    # Where the first half holds no error, nothing in it asks for a threshold above any score.
    clean = PRMProbe.build(task, responses(task, [right, right, right, wrong]))
    kept = clean.evaluate(np.vstack([np.ones((2, 3)), scores[2:]]))
    assert kept["step_auc"] == 1.0 and kept["first_error_f1"] in (0.0, 1.0)
