"""The page of claims: a summary, then every claim with its numbers."""

import collections
import pathlib
from collections.abc import Sequence

from prm_jax.runs.claims import MIN_SEEDS, VERDICTS, Claim, Measured, measure

_HEAD = """# Claims

What the literature says about process rewards, and what was measured here. This page is written by `{command}`
from the results that the experiments left as JSON; it is not edited by hand. Brackets are 95 % intervals. The command
fails when the intervals no longer support a verdict.

{counts}

"Reproduced" means that the effect was seen here, in the setting of the experiment. Claims marked * rest on fewer than
{seeds} seeds.
"""


def measure_all(claims: Sequence[Claim], folder: pathlib.Path) -> list[Measured]:
    """Every claim with its numbers; each claim's results are read under `folder`."""
    return [measure(claim, folder) for claim in claims]


def page(found: Sequence[Measured], *, command: str, to_results: str) -> str:
    """The page as Markdown.

    Args:
      found: claims with their numbers.
      command: what writes the page.
      to_results: relative path from the page to the folder of the results.
    """
    counts = collections.Counter(item.claim.verdict for item in found)
    lines = ["| verdict | claims |", "|---|--:|", *(f"| {name} | {counts[name]} |" for name in VERDICTS)]
    text = _HEAD.format(command=command, counts="\n".join(lines), seeds=MIN_SEEDS)
    cores = sorted({item.claim.core for item in found if item.claim.core})
    text += "\n## Summary\n\n| | claim | verdict | source | seeds | cost |\n|--:|---|---|---|--:|--:|\n"
    ordered = [item for core in (*cores, 0) for item in found if item.claim.core == core]
    text += "".join(_row(item) for item in ordered)
    text += "\nThe first column groups the claims by subject.\n"
    text += "\n## Measurements\n"
    return text + "".join(_section(item, to_results) for item in ordered if item.values)


def _row(item: Measured) -> str:
    claim = item.claim
    name = f"[{claim.claim}](#{claim.id})" if item.values else f"{claim.claim}. {claim.finding}"
    verdict = claim.verdict + " *" * item.few_seeds
    return f"| {claim.core or ''} | {name} | {verdict} | {claim.source} | {_seeds(item)} | {_cost(item)} |\n"


def _section(item: Measured, to_results: str) -> str:
    claim = item.claim
    seeds = "one seed" if item.seeds == 1 else f"{item.seeds} seeds"
    few = f" Only {seeds}, which are too few to settle it." if item.few_seeds else ""
    folder = pathlib.PurePosixPath(claim.results).parts[0]
    rows = "".join(f"| {label} | {_cell(value)} |\n" for label, value in item.values.items())
    return (
        f"\n### {claim.id}\n\n{claim.claim} ({claim.source}).\n\n"
        f"**{claim.verdict.capitalize()}.** {claim.finding}{few}\n\n"
        f"| measured | |\n|---|--:|\n{rows}\n"
        f"Seeds: {_seeds(item)}. Cost: {_cost(item)}. [Experiment]({to_results}/{folder}/README.md), "
        f"[numbers]({to_results}/{claim.results}).\n\n```\n{claim.command}\n```\n"
    )


def _cell(value: tuple[float, float, float]) -> str:
    middle, low, high = value
    return f"{middle:.3g}" if low == high else f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _seeds(item: Measured) -> str:
    return {0: "exact", -1: ""}.get(item.seeds, str(item.seeds))


def _cost(item: Measured) -> str:
    if item.seconds is None:
        return "not recorded" if item.values else ""
    if item.seconds < 120:
        return f"{item.seconds:.0f} s"
    return f"{item.seconds / 60:.0f} min" if item.seconds < 7200 else f"{item.seconds / 3600:.0f} h"
