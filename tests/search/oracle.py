"""A search of objects and recursion, one question at a time in float64, and random problems for it and for the arrays.

A problem is a hash: the children of a state, their priors, values, rewards and ends are functions of its number, the
same in NumPy and in JAX.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np


def mix(x):
    """A permutation of 32-bit numbers that looks random; for NumPy and JAX arrays."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def unit(x, salt):
    """A number in [0, 1) of 20 bits, exact in float32."""
    return (mix(x ^ np.uint32(salt)) >> 12).astype(np.float32) / np.float32(2**20)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["ends", "holes"], meta_fields=["width", "rewards"]
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """How a random problem looks; `answer` works on arrays [...] of states and gives [..., C]."""

    width: int = 3
    ends: float = 0.25
    holes: float = 0.2
    rewards: bool = False

    def answer(self, state, xp=np):
        """(states, prior, value, terminal, valid, reward) of the children."""
        with np.errstate(over="ignore"):
            state = state[..., None] * np.uint32(31)
        child = mix(state + xp.arange(1, self.width + 1).astype(np.uint32))
        reward = unit(child, 5) - 0.5 if self.rewards else xp.zeros(child.shape, np.float32)
        return (
            child,
            unit(child, 1),
            unit(child, 2) * 2 - 1,
            unit(child, 3) < self.ends,
            unit(child, 4) >= self.holes,
            reward,
        )

    def own(self, state):
        """The value of a state."""
        return unit(state, 2) * 2 - 1


@dataclasses.dataclass
class Node:
    """One node; `slots` is the number of the first child's slot."""

    state: np.uint32
    slot: int
    depth: int
    parent: "Node | None" = None
    prior: float = 0.0
    value: float = 0.0
    reward: float = 0.0
    terminal: bool = False
    closed: bool = False
    visits: float = 0
    total: float = 0.0
    returns: list = dataclasses.field(default_factory=list)
    kids: "list[Node] | None" = None

    @property
    def q(self):
        return self.total / self.visits if self.visits else 0.0


Score = Callable[[Node, Node], float]


def puct(c, discount=None):
    def score(parent, kid):
        q = kid.q if discount is None or not kid.visits else kid.reward + discount * kid.q
        return q + c * kid.prior * math.sqrt(parent.visits) / (1 + kid.visits)

    return score


def alphazero(c1, c2, discount=None):
    def score(parent, kid):
        scale = c1 + math.log((parent.visits + c2 + 1) / c2)
        q = kid.q if discount is None or not kid.visits else kid.reward + discount * kid.q
        return q + scale * kid.prior * math.sqrt(parent.visits) / (1 + kid.visits)

    return score


def ucb1(c, two, unvisited, initial=False, discount=None):
    def worth(kid, value):
        return value if discount is None else kid.reward + discount * value

    def score(parent, kid):
        if not kid.visits:
            return (worth(kid, kid.value) if initial else 0.0) + unvisited
        return worth(kid, kid.q) + c * math.sqrt(two * math.log(max(parent.visits, 1)) / kid.visits)

    return score


def blueprint(c1, c2):
    def score(parent, kid):
        low, high = min(k.q for k in parent.kids), max(k.q for k in parent.kids)
        q = (kid.q - low) / max(high - low, 1e-8)
        n = max(parent.visits - 1, 0)
        return q + (c1 + math.log((n + c2 + 1) / c2)) * math.sqrt(n) / (1 + kid.visits)

    return score


class Search:
    """One question's search."""

    def __init__(self, problem, seed, score, *, capacity, max_depth, rule, returns, discount=1.0, revisit=False):
        self.problem, self.score, self.rule, self.returns = problem, score, rule, returns
        self.capacity, self.max_depth, self.discount, self.revisit = capacity, max_depth, discount, revisit
        state = np.uint32(seed)
        self.root = Node(state, 0, 0, value=float(problem.own(state)))
        self.nodes, self.used, self.dropped = [self.root], 1, 0

    def simulate(self):
        if self.root.closed:
            return
        node = self.root
        while node.kids is not None:
            open_kids = [kid for kid in node.kids if not kid.closed]
            if not open_kids:
                node.closed = True
                return
            node = max(open_kids, key=lambda kid: self.score(node, kid))  # the first of equals
        if node.terminal:
            self.back_up(node, [node.value])
        else:
            self.expand(node)

    def expand(self, node):
        child, prior, value, terminal, valid, reward = (x.tolist() for x in self.problem.answer(node.state))
        if not any(valid):
            node.closed = True
            self.back_up(node, [node.value])
            return
        if self.used + self.problem.width > self.capacity:
            self.dropped += 1
            return
        node.kids = []
        for i in range(self.problem.width):
            if valid[i]:
                end = terminal[i] or node.depth + 1 == self.max_depth
                kid = Node(
                    np.uint32(child[i]), self.used + i, node.depth + 1, node, prior[i], value[i], reward[i], end,
                    end and not self.revisit,
                )
                node.kids.append(kid)
                self.nodes.append(kid)
        self.used += self.problem.width
        counted = [kid for kid in node.kids if self.returns == "children" or kid.terminal]
        for kid in counted:
            kid.visits, kid.total, kid.returns = 1, kid.value, [kid.value]
        values = [kid.reward + self.discount * kid.value for kid in counted]
        if self.returns == "leaf" or not values:
            values.append(node.value)
        self.back_up(node, values)

    def back_up(self, node, values):
        last = node
        returns = list(values)
        while node is not None:
            node.visits += len(values)
            node.returns += returns
            if self.rule == "mean":
                node.total += sum(returns)
            elif self.rule == "max":
                node.total = max(node.returns) * node.visits
            else:
                kids = [kid for kid in node.kids or [] if kid.visits]
                seen = sum(kid.visits for kid in kids)
                own = np.mean(values) if node is last else 0.0
                q = sum(k.visits * (k.reward + self.discount * k.q) for k in kids) / seen if seen else own
                node.total = q * node.visits
            returns = [node.reward + self.discount * g for g in returns]
            node = node.parent
