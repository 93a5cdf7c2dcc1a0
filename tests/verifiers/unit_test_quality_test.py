"""Static properties of unit tests."""

import pytest

from prm_jax.data import make_verifier
from prm_jax.errors import UserError
from prm_jax.verifiers import UnitTestVerifier
from prm_jax.verifiers.unit_test_quality import METRICS, read_properties

GOOD = '''```python
import pytest
from shop import Cart

def test_total_of_two_items():
    """The total is the sum of the prices."""
    cart = Cart()
    cart.add(2)
    cart.add(3)
    assert cart.total() == 5
    with pytest.raises(ValueError):
        cart.total(currency="?")
```'''

# property: the smallest change of GOOD that loses it
CHANGES = {
    "calls_focal": ("total(", "sum("),
    "no_duplicate_assertion": ("== 5\n", "== 5\n    assert cart.total() == 5\n"),
    "no_condition": ("    assert", "    if cart:\n        assert"),
    "no_print": ("    cart.add(3)", "    cart.add(3)\n    print(cart)"),
    "no_swallowed_exception": ("    cart.add(3)", "    try:\n        cart.add(3)\n    except Exception: pass"),
    "one_test": ("import pytest", "def test_nothing(): pass"),
}


def test_a_good_test_has_every_property():
    assert read_properties(GOOD, "Cart.total") == dict.fromkeys(METRICS, True)
    assert UnitTestVerifier().verify(GOOD, "total").status == "pass"


@pytest.mark.parametrize("name", CHANGES)
def test_one_change_loses_one_property(name):
    changed = GOOD.replace(*CHANGES[name])
    found = read_properties(changed, "total")
    assert [metric for metric, holds in found.items() if not holds] == [name]


def test_assertions_that_cannot_fail_are_none():
    for body in ("assert True", "self.assertEqual(1, 1)", "pass", "x = 1"):
        code = f"```python\ndef test_total_of_two_items(self):\n    total()\n    {body}\n```"
        assert not read_properties(code, "total")["asserts"], body
    assert read_properties("```python\ndef test_a(self):\n    self.assertEqual(total(), 1)\n```", "total")["asserts"]


def test_score_is_the_weighted_share_behind_the_gates():
    printing = GOOD.replace(*CHANGES["no_print"])
    assert UnitTestVerifier().verify(printing, "total").score == pytest.approx(7 / 8)
    one = UnitTestVerifier(metrics=("no_print", "described"), weights=(3.0, 1.0))
    assert one.verify(printing, "total").score == 0.25
    without = GOOD.replace(*CHANGES["calls_focal"])
    assert UnitTestVerifier(metrics=("no_print",)).verify(without, "total").score == 0.0
    assert UnitTestVerifier(metrics=("no_print",), gates=()).verify(without, "total").score == 1.0
    assert UnitTestVerifier().verify("def test_(", "total").no_answer


def test_by_name_on_the_command_line():
    made = make_verifier("unit_test", {"metrics": "no_print,described", "weights": "3,1"})
    assert (made.metrics, made.weights) == (("no_print", "described"), (3.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("prints",)}, "unknown property 'prints'"),
        ({"metrics": ()}, "at least one"),
        ({"weights": (1.0,)}, "1 weights for 8"),
        ({"metrics": ("asserts",), "weights": (0.0,)}, "positive"),
        ({"gates": ("x",)}, "unknown property 'x'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        UnitTestVerifier(**options)
