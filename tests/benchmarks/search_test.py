"""The benchmark of tree search runs in its smallest size without its peer, and evaluates the nodes that it says."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import search


@pytest.mark.slow
def test_without_the_peer(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setitem(sys.modules, "mctx", None)
    monkeypatch.setattr(sys, "argv", ["search", "--smoke", "--out", str(out)])
    search.main()
    found = json.loads(out.read_text())
    assert set(found["batches"]) == {"2"} and found["setting"]["nodes"] == 200
    ours = found["batches"]["2"]
    assert set(ours) == {"prm_jax", "prm_jax, one child at a time"}
    for taken in ours.values():
        assert len(taken["wall_ms"]) == 2 and min(taken["wall_ms"]) > 0 and taken["temporary_bytes"] > 0
    assert set(found["memory"]) == {"prm_jax"}
    shown = capsys.readouterr().out
    assert "mctx is not installed" in shown and "B = 2, 200 nodes a question, 2 repeats" in shown


def test_the_work_is_what_the_table_says():
    """40 expansions of 5 children at once; or 200 evaluations of single nodes below the root's."""
    tree = jax.jit(search.ours(2)[0])(search.roots(2))
    assert np.all(np.asarray(tree.count) == 1 + search.NODES) and not np.asarray(tree.dropped).any()
    one = jax.jit(search.ours_one_at_a_time(2)[0])(search.roots(2))
    evaluated = np.asarray((one.first_child >= 0).sum(1))
    assert np.all(evaluated <= search.NODES + 1) and np.all(evaluated > search.NODES // 2)
