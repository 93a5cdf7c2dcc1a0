"""A model that writes a critique with a verdict on each step: GenPRM, ThinkPRM and R-PRM.

arXiv 2504.00891, 2504.16828, 2503.21295. It learns by imitating critiques, and scores by the probability of the
verdicts in critiques that it samples.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least
from prm_jax.prm.critiques.formats import find_format, problem_text
from prm_jax.prm.critiques.sampling import critique_prompt, sample_critiques
from prm_jax.prm.critiques.voting import scores_of_votes, to_learn, votes_of
from prm_jax.prm.forward import step_sums, text_logprobs
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Kind, Needs, Output, Spec, Weights, without_head
from prm_jax.prm.text_layout import Reader, Tokens
from prm_jax.rollouts.local import Batching, LocalEngine
from prm_jax.rollouts.sampling_options import SamplingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generative(Kind):
    """Critiques with verdicts."""

    kind: Literal["generative"] = "generative"
    critique: str = "thinkprm"
    """Format of the critiques: thinkprm (one critique judges the steps up to the first wrong one), genprm and r_prm (a
    critique per step), brief (verdicts without reasoning), or package.module:function or file.py:function."""
    votes: Annotated[int, at_least(1)] = 1
    """Critiques per solution, or per step, over which a score is averaged."""
    vote: Literal["probability", "majority"] = "probability"
    """A step's score: the mean probability of the verdict "right", or the share of critiques with it."""
    max_new_tokens: Annotated[int, at_least(1)] = 512
    """Maximum length of a critique, in tokens."""
    temperature: Annotated[float, at_least(0)] = 0.6
    """Sampling temperature of critiques."""
    rows: Annotated[int, at_least(1)] = 64
    """Critiques that are sampled at once."""
    sampling_seed: Annotated[int, at_least(0)] = 0
    """Seed of the critiques."""

    learns_from: ClassVar[Needs] = "labels"
    output: ClassVar[Output] = "probability"
    default_aggregate: ClassVar = "min"
    generates: ClassVar[bool] = True

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The format must exist, and the language model is what trains."""
        del model
        found = []
        try:
            find_format(self.critique, option="prm.critique")
        except UserError as error:
            found.append(str(error))
        return found + without_head(self.kind, train)

    def layout(self, text: TextLayout) -> TextLayout:
        """An instruction as a prompt and a critique as the answer, which ends."""
        return dataclasses.replace(text, separator="", between="", strip=False, pieces="prompt", end=True)

    def select_records(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        """Instructions as prompts, critiques as single steps to imitate."""
        made = []
        for record, form, step, text in to_learn(records, find_format, self.critique):
            prompt = form.prompt(problem_text(record.prompt, record.id), record.steps, step=step)
            made.append(dataclasses.replace(record, prompt=prompt, steps=(text,), labels=(1.0,), forced=()))
        if not made:
            raise UserError(
                f"nothing to learn from: none of {len(records)} solutions has a critique (provenance.critique, as "
                "prm-jax critique writes it) or step labels whose verdicts could be written"
            )
        return made

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[N, T] float32 log-probabilities of the critiques' tokens, 0 elsewhere."""
        return text_logprobs(spec, weights, batch)

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """The mean negative log-likelihood of a critique's token."""
        del spec, constant
        return rl.weighted_nll(found, jnp.ones(found.shape[:1]), batch.slots >= 0)

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S]: the log-likelihood of the critique itself; solutions are scored by `sampled_scores`."""
        del spec
        return step_sums(found, batch)

    def reader(self, layout: TextLayout) -> Reader:
        """The longest instruction for a solution, with room for a critique after it."""
        form = find_format(self.critique, option="prm.critique")

        def read(prompt: Any, steps: Sequence[str], tokenizer: Any) -> Tokens:
            record = StepRecord(prompt, tuple(steps), None, None, "", "this solution")
            last = len(steps) - 1 if form.scope == "step" else None
            ids = np.asarray(critique_prompt(record, form, layout, tokenizer, step=last), np.int32)
            end = np.full(len(steps), len(ids) + self.max_new_tokens - 1, np.int32)
            return Tokens(ids, np.full(len(ids), -1, np.int32), end)

        return read

    def sampled_scores(self, prm: Any, records: Sequence[StepRecord], *, ways: int = 1) -> Iterator[np.ndarray]:
        """[S] for each solution: the vote over critiques that the model writes in this process."""
        form = find_format(self.critique, option="prm.critique")
        engine = LocalEngine(
            prm.spec.config, prm.weights.model, key=jax.random.key(self.sampling_seed),
            sampling=SamplingOptions(self.temperature), stops=(form.stop,), tokenizer=prm.tokenizer,
            batching=Batching(self.rows, ways),
        )  # fmt: skip
        critiques = sample_critiques(
            engine, records, form, layout=prm.layout, votes=self.votes, max_new_tokens=self.max_new_tokens
        )
        for record, own in zip(records, critiques, strict=True):
            yield scores_of_votes(votes_of(own, len(record.steps), how=self.vote)).astype(np.float32)
