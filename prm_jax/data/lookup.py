"""A small world of facts: questions over several hops that can be answered only by looking facts up."""

from prm_jax.data.procedural import words
from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Feedback

_RELATIONS = "pqrst"


class Lookup:
    """Facts ``a.p = b`` that are drawn for every episode, and a question such as ``A.p.q?``.

    Actions end with a new line: ``A.p`` looks a fact up, and the answer is the entity; ``!B`` answers the question and
    ends the episode, with reward 1 when it is right. Anything else is answered by ``?``.

    Args:
      entities: 3 to 26, capital letters.
      relations: 1 to 5.
      hops: relations in a question, at least 1.
    """

    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 :=>;,.?!\n"
    max_turns = 6

    def __init__(self, entities: int = 8, relations: int = 3, hops: int = 2) -> None:
        if not 3 <= entities <= 26 or not 1 <= relations <= len(_RELATIONS) or hops < 1:
            raise UserError(
                f"a world of facts has 3 to 26 entities, 1 to {len(_RELATIONS)} relations and at least one hop; found "
                f"{entities}, {relations} and {hops}"
            )
        self.entities, self.relations, self.hops = entities, relations, hops

    def reset(self, seed: int) -> str:
        """See `Environment`."""
        stream = words("lookup", self.entities, self.relations, self.hops, seed)
        names = self.alphabet[: self.entities]
        self.facts = {
            (name, relation): names[next(stream) % self.entities]
            for name in names
            for relation in _RELATIONS[: self.relations]
        }
        self.asked = names[next(stream) % self.entities]
        self.path = "".join(_RELATIONS[next(stream) % self.relations] for _ in range(self.hops))
        self.known, self.left = self.asked, self.path
        return f"{self.asked}.{'.'.join(self.path)}?\n"

    def step(self, action: str) -> Feedback:
        """See `Environment`."""
        word = action.strip()
        if word.startswith("!"):
            return Feedback("", float(word[1:] == self._truth()), done=True)
        name, dot, relation = word.partition(".")
        if not dot or (name, relation) not in self.facts:
            return Feedback("?\n")
        found = self.facts[name, relation]
        if self.left and (name, relation) == (self.known, self.left[0]):
            self.known, self.left = found, self.left[1:]
        return Feedback(f"={found}\n")

    def solution(self) -> list[str]:
        """The fewest actions from here."""
        actions, name = [], self.known
        for relation in self.left:
            actions.append(f"{name}.{relation}\n")
            name = self.facts[name, relation]
        return [*actions, f"!{name}\n"]

    def temptation(self) -> str | None:
        """To answer with what is known before the last fact is looked up."""
        return f"!{self.known}\n" if self.left and self.known != self.asked else None

    def _truth(self) -> str:
        name = self.asked
        for relation in self.path:
            name = self.facts[name, relation]
        return name
