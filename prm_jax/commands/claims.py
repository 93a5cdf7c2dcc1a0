"""``prm-jax claims``: the page of claims from the results of experiments."""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from prm_jax.errors import UserError

if TYPE_CHECKING:
    from prm_jax.runs.claims import Claim


@dataclass(frozen=True)
class Options:
    """Write the page of claims from the results of experiments, or check it.

    Each entry of the list names a claim, the JSON file with its results, the numbers to show, and conditions on their
    intervals. Results of another version are refused, and so is a verdict whose conditions do not hold.
    """

    claims: Annotated[pathlib.Path, tyro.conf.Positional] = pathlib.Path("experiments/claims.yaml")
    """List of claims (YAML); files of results are relative to its directory."""
    out: pathlib.Path = pathlib.Path("docs/claims.md")
    """The page to write."""
    check: bool = False
    """Write nothing; fail if the page is not up to date."""
    rerun: tuple[Literal["exact", "cheap", "long"], ...] = ()
    """Run experiments of these kinds again, in the current directory, and compare every number with its results."""
    only: tuple[str, ...] = ()
    """With --rerun: only these claims, by id."""


def run(options: Options) -> int:
    """Writes or checks the page; returns 1 if numbers differ."""
    from prm_jax.runs import claims_page
    from prm_jax.runs.claims import read_claims

    claims = read_claims(options.claims)
    folder = options.claims.parent
    found = claims_page.measure_all(claims, folder)
    failed = [f"{item.claim.id}: {text}" for item in found for text in item.failed]
    if failed:
        raise UserError("\n".join([*failed, f"change the verdicts, or the checks, in {options.claims}"]))
    if options.rerun:
        return _rerun(options, claims)
    to_results = pathlib.PurePath(os.path.relpath(folder, options.out.parent)).as_posix()
    text = claims_page.page(found, command=f"prm-jax claims {options.claims}", to_results=to_results)
    if options.check:
        if not options.out.is_file() or options.out.read_text(encoding="utf-8") != text:
            raise UserError(f"{options.out} is not what the results say: run prm-jax claims, or make claims")
        print(f"{options.out} is up to date")
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    few = sum(item.few_seeds for item in found)
    print(f"{options.out}: {len(found)} claims, {few} of them on too few seeds")
    return 0


def _rerun(options: Options, claims: "Sequence[Claim]") -> int:
    from prm_jax.runs.claims_rerun import rerun

    claims = [claim for claim in claims if claim.rerun in options.rerun and claim.results]
    unknown = set(options.only) - {claim.id for claim in claims}
    if unknown:
        known = ", ".join(claim.id for claim in claims)
        raise UserError(f"--only: {', '.join(sorted(unknown))} is no measured claim of this kind; there are {known}")
    claims = [claim for claim in claims if not options.only or claim.id in options.only]
    wrong = 0
    for results, problems in rerun(claims, options.claims.parent, root=pathlib.Path.cwd()):
        print(f"{results}: {'as before' if not problems else f'{len(problems)} numbers differ'}", flush=True)
        for problem in problems:
            print(f"  {problem}")
        wrong += bool(problems)
    return 1 if wrong else 0
