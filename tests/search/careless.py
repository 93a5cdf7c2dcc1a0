"""A made-up policy of the carry task that stands for a model, and what the tests of search and label share."""

import json

import jax
import numpy as np

from prm_jax import models
from prm_jax.data.carry import ALPHABET
from prm_jax.rollouts import Batching, LocalEngine

SMALL = ["--problems", "4", "--task-options", "max_operands", "4", "--sampling.step-tokens", "14",
         "--sampling.max-new-tokens", "40", "--max-steps", "3"]  # fmt: skip


class Careless:
    """Stands for `generate`: writes what the careless teacher would, from any prefix, by its own random numbers."""

    def __init__(self):
        self.tokenizer, self.drop = models.CharTokenizer(ALPHABET), 0.5

    def __call__(self, config, params, prompts, key, *, samples_per_prompt, max_new_tokens, stop, options, **rest):
        rows = []
        for prompt, number in zip(prompts, options.prompt_ids, strict=True):
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


def stand_in(monkeypatch, policy):
    """Puts a policy in the place of `generate`, and batches of it in that of slots."""

    def batches(config, params, *, slots, mesh, **same):
        return LocalEngine(config, params, batching=Batching(slots), **same)

    monkeypatch.setattr(models, "generate", policy)
    monkeypatch.setattr("prm_jax.rollouts.slots.SlotEngine", batches)


METHODS = {
    "majority": [], "best_of_n": [], "weighted_vote": [], "beam": ["--beams", "2"], "dvts": ["--beams", "2"],
    "step_beam": ["--beams", "2"], "mcts": ["--simulations", "6"],
    "lookahead": ["--beams", "1", "--horizon", "2"], "parm": ["--samples", "8"],
    "mean_vote": ["--samples", "8"], "refine": ["--samples", "1", "--width", "3"],
    "refine_step": ["--samples", "1", "--width", "3"],
}  # fmt: skip


def save_reward_model(model, path, kind, outputs):
    from prm_jax.prm import PRM, save
    from prm_jax.prm.forward import init_head
    from prm_jax.prm.kinds import KINDS
    from prm_jax.prm.reward_model_options import TextLayout
    from prm_jax.prm.spec import Spec, Weights

    config, params = models.load_weights(model)
    spec = Spec(KINDS[kind](), config)
    head = init_head(spec, jax.random.key(5), num_outputs=outputs, random=True)
    save(path, PRM(spec, Weights(params, head, {}), models.CharTokenizer(ALPHABET), TextLayout(separator="")))
    return str(path)


LABEL = ["--problems", "6", "--task-options", "min_operands", "5", "max_operands", "5", "--sampling.max-new-tokens",
         "48", "--rollouts", "6"]  # fmt: skip


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ["--task", str(path), "--task-options", "eval_fraction", "1"]


TREE = [*LABEL, "--method", "tree", "--tree.simulations", "12", "--tree.width", "3", "--tree.max-steps", "6"]
