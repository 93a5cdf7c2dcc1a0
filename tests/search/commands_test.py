"""The commands search and label on the carry task: with a model that knows nothing, and a made-up careless one."""

import json

import jax
import numpy as np
import pytest

from prm_jax import cli, models
from prm_jax.data.carry import ALPHABET, CarryTask
from prm_jax.data.step_data import read_step_data

SMALL = ["--problems", "4", "--task-options", "max_operands", "4", "--sampling.step-tokens", "14",
         "--sampling.max-new-tokens", "40", "--max-steps", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = models.CharTokenizer(ALPHABET)
    config = models.ModelConfig(
        architecture="llama", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "hf"
    models.save_weights(path, config, models.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return str(path)


class Careless:
    """Stands for `generate`: writes what the careless teacher would, from any prefix, by its own random numbers."""

    def __init__(self):
        self.tokenizer, self.drop = models.CharTokenizer(ALPHABET), 0.5

    def __call__(self, config, params, prompts, key, *, samples_per_prompt, max_new_tokens, stop, prompt_ids, **rest):
        rows = []
        for prompt, number in zip(prompts, prompt_ids, strict=True):
            rng = np.random.default_rng([number, *jax.random.key_data(key).tolist()])
            for _ in range(samples_per_prompt):
                text = self.go_on(self.tokenizer.decode(prompt, skip_special=True), rng)
                ids = self.tokenizer.encode(text, add_special=False) + [self.tokenizer.eos_id]
                if ";" in stop and ";" in text:
                    ids = ids[: text.index(";") + 1]
                rows.append(ids[:max_new_tokens])
        tokens = np.array([row + [0] * (max_new_tokens - len(row)) for row in rows])
        mask = np.arange(max_new_tokens) < np.array([[len(row)] for row in rows])
        return models.Samples(tokens, mask, np.where(mask, -0.1, 0.0), np.ones(len(rows), bool))

    def go_on(self, text, rng):
        prompt, _, written = text.partition("=")
        row = [int(x) for x in prompt.split("+")]
        steps = [piece for piece in written.split(";") if piece]
        total = int(steps[-1].split("=")[1]) if steps else row[0]
        out = []
        for operand in row[len(steps) + 1 :]:
            after = total + operand - (10 if total % 10 + operand >= 10 and rng.random() < self.drop else 0)
            out.append(f"{total}+{operand}={after}")
            total = after
        return ";".join(out) + f"#{total}"


@pytest.fixture
def careless(monkeypatch):
    monkeypatch.setattr(models, "generate", Careless())


METHODS = {
    "majority": [], "best_of_n": [], "weighted_vote": [], "beam": ["--beams", "2"], "dvts": ["--beams", "2"],
    "step_beam": ["--beams", "2"], "mcts": ["--simulations", "6"],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_the_careless_policy(method, model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["search", model, *SMALL, "--problems", "12", "--method", method, *METHODS[method], "--scorer", "truth"]
    assert cli.main([*words, "--out", str(out), "--chunk", "5"]) == 0
    table = capsys.readouterr().out
    head, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert head["settings"]["method"] == method and len(lines) == 12
    for line, problem in zip(lines, CarryTask(3, 4).eval, strict=False):
        assert line["candidates"] > 0 and line["tokens"] > 0
        assert (line["answer"] == problem.answer) == (line["correct"] == 1.0)
        if method not in ("majority",):  # with the true scores the best candidate is right if any is
            assert line["correct"] == line["any_correct"]
    assert "accuracy" in table and "tokens a problem" in table
    # Another chunk size and going on from a part give the same.
    part = tmp_path / "part.jsonl"
    part.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:8]).replace(out.name, part.name))
    assert cli.main([*words, "--out", str(part), "--chunk", "5", "--resume"]) == 0
    assert part.read_text() == out.read_text()
    assert cli.main([*words, "--out", str(tmp_path / "whole.jsonl"), "--chunk", "12"]) == 0
    assert (tmp_path / "whole.jsonl").read_text().splitlines()[1:] == out.read_text().splitlines()[1:]


def test_a_saved_reward_model_scores_the_candidates(model, careless, tmp_path):
    from prm_jax.training.prm import PRM, save_prm
    from prm_jax.training.prm.forward import Spec, Weights, init_head
    from prm_jax.training.prm.options import KindOptions, TextLayout

    config, params = models.load_weights(model)
    spec = Spec(KindOptions("token"), config)
    head = init_head(spec, jax.random.key(5), num_outputs=2, random=True)
    layout = TextLayout(separator="")
    save_prm(tmp_path / "prm", PRM(spec, Weights(params, head, {}), models.CharTokenizer(ALPHABET), layout))
    out = tmp_path / "found.jsonl"
    words = ["search", model, *SMALL, "--method", "best_of_n", "--scorer", str(tmp_path / "prm"), "--out", str(out)]
    assert cli.main(words) == 0
    assert all(json.loads(line)["candidates"] > 0 for line in out.read_text().splitlines()[1:])


def test_other_settings_are_refused(model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["search", model, *SMALL, "--samples", "2", "--out", str(out)]
    assert cli.main(words) == 0
    assert cli.main(words) == 2 and "exists" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2 and "other seed" in capsys.readouterr().err
    assert cli.main(["search", model, *SMALL, "--resume"]) == 2 and "--resume needs --out" in capsys.readouterr().err
    out.write_text("no json\n")
    assert cli.main([*words, "--resume"]) == 2 and "cannot go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scorer", "nowhere"], "no scorer 'nowhere'"),
        (["--width", "0"], "must be at least 1"),
        (["--method", "mcts", "--simulations", "5000"], "must stay below"),
        (["--task", "carryy"], "unknown task"),
    ],
)
def test_bad_options(model, more, message, capsys):
    assert cli.main(["search", model, *SMALL, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_model_proposes_steps(model, tmp_path, capsys):
    words = ["search", model, *SMALL, "--problems", "2", "--width", "2", "--beams", "2", "--sampling.rows", "4"]
    assert cli.main([*words, "--method", "step_beam"]) == 0
    assert "accuracy              0.0000" in capsys.readouterr().out


LABEL = ["--problems", "6", "--task-options", "min_operands", "5", "max_operands", "5", "--sampling.max-new-tokens",
         "48", "--rollouts", "6"]  # fmt: skip


@pytest.mark.parametrize("method", ["omega", "every_step"])
@pytest.mark.parametrize("kind", ["soft", "hard", "vstar"])
def test_labels_find_the_true_first_error(method, kind, model, careless, tmp_path, capsys):
    out = tmp_path / "labels.jsonl"
    words = ["label", model, str(out), *LABEL, "--method", method, "--labels", kind, "--searches", "4", "--chunk", "4"]
    assert cli.main(words) == 0
    task, right, known = CarryTask(5, 5), 0, 0
    problems = {task.train[i].id: task.train[i] for i in range(6)}
    for record in read_step_data(out):
        truth = task.step_labels(problems[record.group], "".join(record.steps))
        assert record.provenance["method"] == method and len(record.provenance["correct"]) == len(record.steps)
        assert record.outcome == float(all(truth))
        for label, correct in zip(record.labels, truth, strict=True):
            if label is not None:
                # A wrong prefix is never saved; a right one may look wrong when no rollout was lucky.
                assert correct or label == 0
                right, known = right + (correct == (label > 0)), known + 1
    assert known > 20 and right / known > 0.8
    assert cli.main(words) == 2 and "exists" in capsys.readouterr().err


def test_nothing_to_label(model, tmp_path, capsys):
    """A model that knows nothing is never right."""
    words = ["label", model, str(tmp_path / "labels.jsonl"), *SMALL[:-2], "--rollouts", "2", "--chunk", "4"]
    assert cli.main(words) == 2
    assert "all right or all wrong" in capsys.readouterr().err and not list(tmp_path.iterdir())
