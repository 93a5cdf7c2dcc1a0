"""The page of samples: escaped text, colours by reward, and samples without rewards."""

import re

from prm_jax.runs.samples_page import samples_page


def _record(step=1, *, response="a<b", outcome=1.0, steps=(), prompt="1 & 1"):
    return {
        "step": step, "prompt": prompt, "response": response, "outcome": outcome, "steps": steps,
        "info": {"answer": "<script>"},
    }  # fmt: skip


def test_text_is_escaped_and_nothing_is_loaded_from_elsewhere():
    page = samples_page("<run>", [_record(steps=[("a<b\n", 0.5), ("c", -0.25)])])
    assert "<script" not in page and "&lt;script&gt;" in page and "1 &amp; 1" in page and "a&lt;b" in page
    assert "<title>Samples of &lt;run&gt;</title>" in page
    assert not re.search(r"(src|href)\s*=|url\(", page)


def test_steps_are_coloured_by_sign_and_relative_size():
    page = samples_page("run", [_record(steps=[("a", 0.5), ("b", -0.25), ("c", -0.0001), ("d", "nan")])])
    colours = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)", page)
    assert colours == [("46", "0.50"), ("248", "0.25"), ("248", "0.00"), ("46", "0.00")]
    assert "> +0.50<" in page and "> -0.25<" in page and "-0.00<" not in page


def test_the_newest_step_comes_first_and_samples_without_rewards_say_so():
    page = samples_page("run", [_record(1, steps=[("a", 0.5)]), _record(2, outcome=0.0)])
    assert page.index("Step 2") < page.index("Step 1")
    assert page.count("not scored") == 1 and "wrong (0)" in page and "right (1)" in page
    assert "no process rewards" in samples_page("run", [_record()])


def test_only_the_newest_samples_are_shown():
    page = samples_page("run", [_record(number) for number in range(500)])
    assert page.count("<article>") == 400 and "Step 499<" in page and "Step 99<" not in page
