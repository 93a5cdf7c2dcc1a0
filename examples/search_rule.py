"""A search rule of your own: sample steps again until the best one scores well enough, at most `tries` times.

prm-jax search MODEL --method examples/search_rule.py:patient --scorer PRM --width 4 --max-steps 16
"""

from prm_jax.search.partials import Ask, Calls, Candidate, Found, Partial


def patient(propose, score, num_questions: int, width: int, max_steps: int, enough=0.9, tries: int = 5) -> Found:
    """One solution per question, step by step; `width` and `max_steps` are the command's options."""
    calls = Calls(propose, score, num_questions)  # checks what both functions return, and counts tokens
    live = [Candidate(Partial(b), -1e9) for b in range(num_questions)]
    for step in range(max_steps):
        best: dict[int, Candidate] = {}
        for turn in range(tries):
            asks = [
                Ask(live[b].partial, step * tries + turn)  # no two requests of a question share their random numbers
                for b in range(num_questions)
                if not live[b].partial.finished and (b not in best or best[b].score < enough)
            ]
            for partial in [p for own in (calls.propose(asks, width) if asks else []) for p in own]:
                new = Candidate(partial, calls.score([partial])[0])
                best[partial.question] = max(best.get(partial.question, new), new, key=lambda one: one.score)
        live = [best.get(b, candidate) for b, candidate in enumerate(live)]
    return calls.result(live)
