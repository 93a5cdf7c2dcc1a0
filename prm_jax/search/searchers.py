"""Searches over the steps of a language model as objects: each holds its own options and checks them.

A searcher is called with functions that propose steps and score prefixes; see ``search.language_model``. Importing this
module imports nothing heavy.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least, check_ranges, within
from prm_jax.resolve import check_signature, resolve

if TYPE_CHECKING:
    from prm_jax.search.partials import Found, ProposeFn, ScorePartials

Choice = Literal["best", "majority", "weighted", "mean"]


class Budget(NamedTuple):
    """What a search may need per question, at most.

    Attributes:
      requests: streams of requests to the policy.
      prefixes: prefixes that are scored.
    """

    requests: int
    prefixes: int


class Searcher:
    """A search with its options.

    Attributes:
      by_steps: it samples solutions step by step, or may do so.
      choice: how the answer is chosen among the candidates: the best one, or by a vote.
      reads_answers: it is called with ``answers``, a function that reads the answers of candidates.
      final_scorer: name of a second scorer, for the solutions that remain; empty for none.
    """

    by_steps: ClassVar[bool] = True
    choice: ClassVar[Choice] = "best"
    reads_answers: ClassVar[bool] = False
    final_scorer: str = ""

    def check(self) -> None:
        """Checks the options.

        Raises:
          UserError: naming the option of the command line.
        """
        problems = check_ranges(self)
        if problems:
            raise UserError("\n".join(problems))

    def budget(self) -> Budget:
        """What the search may need."""
        raise NotImplementedError

    def __call__(
        self, propose: "ProposeFn", score: "ScorePartials", num_questions: int, final: "ScorePartials | None" = None
    ) -> "Found":
        """Runs the search; `final` is the second scorer."""
        raise NotImplementedError


Count = Annotated[int, at_least(1)]


@dataclass(frozen=True, kw_only=True)
class BestOfN(Searcher):
    """The best of `samples` whole solutions."""

    by_steps: ClassVar[bool] = False

    samples: Count = 16

    def budget(self) -> Budget:
        """See `Searcher`."""
        return Budget(1, self.samples)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.sample_search(propose, score, num_questions, samples=self.samples)


@dataclass(frozen=True, kw_only=True)
class MajorityVote(BestOfN):
    """The most frequent answer of `samples` whole solutions."""

    choice = "majority"


@dataclass(frozen=True, kw_only=True)
class WeightedVote(BestOfN):
    """The answer of `samples` whole solutions with the largest sum of scores."""

    choice = "weighted"


@dataclass(frozen=True, kw_only=True)
class MeanVote(BestOfN):
    """The answer of `samples` whole solutions with the largest mean score (MedS3)."""

    choice = "mean"


@dataclass(frozen=True, kw_only=True)
class ConfidentVote(MajorityVote):
    """A majority vote that samples more where the first answers disagree (divide and conquer)."""

    reads_answers = True

    pilot: Count = 4

    def check(self) -> None:
        """See `Searcher`."""
        super().check()
        if self.pilot > self.samples:
            raise UserError(f"--pilot is {self.pilot}; it must be at most --samples, which is {self.samples}")

    def budget(self) -> Budget:
        """See `Searcher`."""
        return Budget(2, self.samples)

    def __call__(
        self, propose: Any, score: Any, num_questions: int, final: Any = None, *, answers: Any = None
    ) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.confident_search(
            propose, score, num_questions, samples=self.samples, pilot=self.pilot, answers=answers
        )


@dataclass(frozen=True, kw_only=True)
class RefineSearch(Searcher):
    """GLoRe's search: drafts are refined from their first wrong step on, and from the beginning."""

    samples: Count = 16
    width: Count = 4
    gate: float = 0.5
    max_steps: Count = 16

    def budget(self) -> Budget:
        """See `Searcher`."""
        steps = self.samples * self.max_steps
        return Budget(steps + 2 * self.samples, steps + 2 * self.samples * self.width)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.refine_search(
            propose, score, num_questions, samples=self.samples, width=self.width, gate=self.gate,
            max_steps=self.max_steps,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RefineStepSearch(RefineSearch):
    """ReARTeR's gate: a step whose score is too low is written again."""

    def budget(self) -> Budget:
        """See `Searcher`."""
        attempts = self.samples * self.max_steps * (self.width + 1)
        return Budget(attempts, attempts)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.refine_step_search(
            propose, score, num_questions, samples=self.samples, width=self.width, gate=self.gate,
            max_steps=self.max_steps,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Searcher):
    """Beam search over steps."""

    beams: Count = 4
    width: Count = 4
    max_steps: Count = 16

    def budget(self) -> Budget:
        """See `Searcher`."""
        requests = self.max_steps * self.beams
        return Budget(requests, requests * self.width)

    def _trees(self) -> int:
        return 1

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.beam_search(
            propose, score, num_questions, beams=self.beams, trees=self._trees(), width=self.width,
            max_steps=self.max_steps,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DiverseTreeSearch(BeamSearch):
    """Diverse verifier tree search: every beam is a tree of its own."""

    def _trees(self) -> int:
        return self.beams


@dataclass(frozen=True, kw_only=True)
class StepBeamSearch(BeamSearch):
    """AlphaMath's beam search: a finished solution keeps its place."""

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.step_beam_search(
            propose, score, num_questions, beams=self.beams, width=self.width, max_steps=self.max_steps
        )


@dataclass(frozen=True, kw_only=True)
class LookAheadSearch(BeamSearch):
    """ReARTeR's search: the value of a step includes those of the steps after it."""

    horizon: Annotated[int, at_least(0)] = 3
    alpha: Annotated[float, within(0.0, 1.0)] = 0.5
    min_gain: float | None = None

    def budget(self) -> Budget:
        """See `Searcher`."""
        beams = self.max_steps * self.beams
        return Budget(beams * (1 + self.horizon * self.width), beams * (1 + self.horizon) * self.width)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.look_ahead_search(
            propose, score, num_questions, beams=self.beams, width=self.width, horizon=self.horizon, alpha=self.alpha,
            min_gain=self.min_gain, max_steps=self.max_steps,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GatedSearch(Searcher):
    """PARM's search: samples continue independently and are dropped when they no longer look promising."""

    samples: Count = 16
    max_steps: Count = 16
    gate: float = 0.5
    gate_from: Count = 1
    final_scorer: str = ""

    def budget(self) -> Budget:
        """See `Searcher`."""
        most = 1 + self.max_steps * self.samples
        return Budget(most, most)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm

        return lm.gated_search(
            propose, score, num_questions, samples=self.samples, max_steps=self.max_steps, threshold=self.gate,
            ready=lambda partial: len(partial.steps) >= self.gate_from, final=final,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MonteCarloSearch(Searcher):
    """AlphaMath's tree search."""

    simulations: Count = 16
    width: Count = 4
    max_steps: Count = 16

    def budget(self) -> Budget:
        """See `Searcher`."""
        slots = 1 + self.simulations * self.width
        return Budget(slots, slots)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search import language_model as lm
        from prm_jax.search.drawn import draw_tree

        found, tree, nodes = lm.tree_search(
            propose, score, num_questions, simulations=self.simulations, width=self.width, max_steps=self.max_steps
        )
        return dataclasses.replace(found, trees=draw_tree(tree, nodes))


@dataclass(frozen=True)
class CustomSearch(Searcher):
    """A search of the user's own.

    Attributes:
      function: (propose, score, num_questions, **options) -> `Found`.
      options: its keyword parameters that have the names of options.
      name: for messages.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any]
    name: str

    def budget(self) -> Budget:
        """Unknown; the policy refuses requests beyond its limit."""
        return Budget(1, 1)

    def __call__(self, propose: Any, score: Any, num_questions: int, final: Any = None) -> "Found":
        """See `Searcher`."""
        from prm_jax.search.partials import Found

        found = self.function(propose, score, num_questions, **self.options)
        if not isinstance(found, Found) or len(found.candidates) != num_questions:
            what = type(found).__name__ if not isinstance(found, Found) else f"candidates of {len(found.candidates)}"
            raise UserError(
                f"the search method {self.name!r} returned {what}; expected a search.language_model.Found with the "
                f"candidates of {num_questions} questions"
            )
        return found


SEARCHERS: dict[str, Any] = {
    "majority": MajorityVote,
    "best_of_n": BestOfN,
    "weighted_vote": WeightedVote,
    "mean_vote": MeanVote,
    "confident_vote": ConfidentVote,
    "beam": BeamSearch,
    "dvts": DiverseTreeSearch,
    "step_beam": StepBeamSearch,
    "lookahead": LookAheadSearch,
    "parm": GatedSearch,
    "refine": RefineSearch,
    "refine_step": RefineStepSearch,
    "mcts": MonteCarloSearch,
}
"""The built-in searches by the names of ``prm-jax search --method``."""


def make_searcher(name: str, options: Mapping[str, Any]) -> Searcher:
    """The search that a name and options describe, checked.

    Args:
      name: one of `SEARCHERS`, or ``module:function`` or ``file.py:function`` of a function (propose, score,
        num_questions) -> `Found`, or of a subclass of `Searcher`. Keyword parameters with the names of options get
        their values.
      options: values of all options; each search takes its own.

    Raises:
      UserError: an unknown name, an option out of range, or a function that cannot be called this way.
    """
    found = resolve(name, SEARCHERS, "search method", option="method")
    if isinstance(found, type) and issubclass(found, Searcher):
        own: Any = found
        made: Searcher = own(**{f.name: options[f.name] for f in dataclasses.fields(own) if f.name in options})
        made.check()
        return made
    parameters = list(inspect.signature(found).parameters.values())[3:]
    keywords = {p.name: options[p.name] for p in parameters if p.name in options}
    called = functools.partial(found, **keywords) if keywords else found
    check_signature(called, ("propose", "score", "num_questions"), f"search method {name!r}")
    return CustomSearch(found, keywords, name)
