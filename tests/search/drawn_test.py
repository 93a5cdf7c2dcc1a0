"""Drawn search trees: nodes, visits and values of a tree search, and of the prefixes that other searches scored."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from prm_jax import cli, search
from prm_jax.prm.tree_page import tree_record, trees_page
from prm_jax.search.drawn import ScoredPrefixes, draw_tree
from prm_jax.search.partials import Partial
from tests.search.careless import SMALL


@jax.jit
def grown():
    ok, two = jnp.ones(1, bool), jnp.ones((1, 2), bool)
    tree = search.init_tree(1, 5, value=0.5)
    tree, _ = search.expand(tree, jnp.array([0]), two * 0.5, jnp.array([[0.2, 0.8]]), ~two, two, ok)
    return search.backup(tree, jnp.array([[0, 2]]), jnp.array([1.0]))


def test_a_tree_keeps_its_visits_and_values():
    nodes = [{0: Partial(0), 1: Partial(0, ((7,),)), 2: Partial(0, ((8,),), finished=True)}]
    (drawn,) = draw_tree(grown(), nodes)
    assert [(node.parent, node.visits, round(node.value, 3)) for node in drawn] == [
        (-1, 1, 1.0),
        (0, 0, 0.2),
        (0, 1, 1.0),
    ]
    record = tree_record(drawn, lambda partial: "".join(map(str, partial.tokens)))
    assert record[2] == {"parent": 0, "step": "8", "visits": 1.0, "value": 1.0, "finished": True}


def test_scored_prefixes_become_a_tree():
    scorer = ScoredPrefixes(lambda partials: [float(len(partial.steps)) for partial in partials], 2)
    scorer([Partial(1, ((5,), (6,))), Partial(1, ((5,), (7, 8)))])
    empty, drawn = scorer.trees()
    assert [node.visits for node in empty] == [0]
    assert [(node.parent, node.partial.steps, node.visits, node.value) for node in drawn] == [
        (-1, (), 2, None), (0, ((5,),), 2, None), (1, ((5,), (6,)), 1, 2.0), (1, ((5,), (7, 8)), 1, 2.0),
    ]  # fmt: skip


def test_text_of_a_model_cannot_end_the_script():
    page = trees_page("a <b>", [{"id": "1", "tree": [{"step": "</script><img src=x>"}]}])
    assert page.count("</script>") == 2 and "<img" not in page and "a &lt;b&gt;" in page
    assert not re.search(r"(src|href)=|https?://(?!www.w3.org)", page.replace("src=x", ""))


@pytest.mark.parametrize("method", ["mcts", "step_beam"])
def test_the_command_draws(method, model, careless, tmp_path, capsys):
    out, page = tmp_path / "found.jsonl", tmp_path / "trees.html"
    words = ["search", model, *SMALL, "--method", method, "--simulations", "4", "--beams", "2", "--scorer", "truth"]
    assert cli.main([*words, "--out", str(out), "--draw", str(page)]) == 0
    lines = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    assert len(lines) == 4
    for line in lines:
        tree = line["tree"]
        assert len(tree) > 2 and tree[0]["parent"] == -1 and line["prompt"].endswith("=")
        assert all(0 <= node["parent"] < i for i, node in enumerate(tree) if i)
        assert all(node["step"] for node in tree[1:]) and any(node["finished"] for node in tree)
    # A file made without trees cannot be drawn.
    plain = tmp_path / "plain.jsonl"
    assert cli.main([*words, "--out", str(plain)]) == 0
    assert cli.main([*words, "--out", str(plain), "--draw", str(page), "--resume"]) == 2
    assert "was made without --draw" in capsys.readouterr().err
