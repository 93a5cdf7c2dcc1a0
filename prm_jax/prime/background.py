"""Rollouts while the policy trains: a thread samples with weights that are at most a few updates old.

The admission rule is AReaL's (arXiv 2505.24298, section 5.1): a prompt is only asked for when, by the time its turn
comes, the weights that began its responses are at most `max_lag` updates old.
"""

import base64
import dataclasses
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.data.pipeline import PromptBuffer
from prm_jax.prime.collect import Collector
from prm_jax.prime.drawing import Drawing, flips_of, keys_of_rounds
from prm_jax.prime.group_pool import GroupPool
from prm_jax.prime.responses import ROLLOUT_STREAM, Responses
from prm_jax.prime.selection import Acceptance, Groups
from prm_jax.rollouts.engine import EngineStats, Response, Ticket
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_rows import SlotResponse
from prm_jax.rollouts.slot_source import SlotSource
from prm_jax.rollouts.slots import SlotEngine

ARRAYS: dict[str, Any] = {
    "tokens": np.int32, "logp": np.float32, "version": np.int32, "sampled": np.bool_, "log_mass": np.float32
}  # fmt: skip


@dataclasses.dataclass
class BackgroundCollector(Collector):
    """A collector whose responses are sampled in a thread of their own; see `Collector`.

    Which weights draw which token depends on timing, so that runs are not reproducible. What has been sampled and not
    been used is part of the position: a resumed run continues these responses.

    Attributes:
      engines: of the thread; nothing else uses it.
      first: number of the next prompt to use, over the whole run.
      saved: responses of prompts that were asked for when the position was saved, by the number of the prompt.
    """

    engines: SlotSource | None = None
    first: int = 0
    saved: dict[int, list[SlotResponse]] = dataclasses.field(default_factory=dict)
    _thread: "_Thread | None" = None

    def _groups(self, params: Any, step: int) -> tuple[Groups, Acceptance]:
        if self._thread is None:
            self._thread = _Thread(self, params, step)
        thread = self._thread
        thread.renew(params, step)
        acceptance = thread.wait(Acceptance(self.options), self.first)
        groups, (self.buffer, self.too_long) = thread.release(self.first, acceptance.end, step)
        self.first += acceptance.end
        return groups, acceptance

    def _engine_stats(self) -> EngineStats:
        return EngineStats() if self.engines is None else self.engines.stats()

    def _more_metrics(self, groups: Groups, step: int) -> dict[str, float]:
        versions = groups.responses.version
        if versions is None or not groups.responses.mask.any():
            return {}
        lags = step - versions[groups.responses.mask]
        return {"rollout/max_lag": float(lags.max()), "rollout/mean_lag": float(lags.mean())}

    def position(self) -> dict[str, Any]:
        """See `Collector`; with the responses that are sampled and not used yet."""
        responses = self.saved if self._thread is None else self._thread.snapshot()
        saved = {str(number): [_written(one) for one in group] for number, group in responses.items()}
        return {**super().position(), "first": self.first, "responses": saved}

    def restore(self, position: dict[str, Any]) -> None:
        """See `Collector`."""
        super().restore(position)
        self.first = position["first"]
        self.saved = {int(n): [_read(one) for one in group] for n, group in position["responses"].items()}

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


class _Thread:
    """Samples and verifies until it is stopped. Everything but `_loop` is called by the collector's thread.

    Args:
      collector: whose prompts and options are used.
      params, step: the first weights and their version.
    """

    def __init__(self, collector: BackgroundCollector, params: Any, step: int) -> None:
        self.options, self.source, self.say = collector.options, collector.engines, collector.say
        key_of = keys_of_rounds(
            self.options.prompts_per_step, jax.random.fold_in(collector.key, ROLLOUT_STREAM)
        )  # fmt: skip
        self.pool = GroupPool(collector.sampler, self.options, key_of, flips_of(self.options, key_of))
        self.drawing = Drawing(collector.sampler, collector.stream, collector.buffer, collector.too_long)
        self.lock = threading.Condition()
        self.decided: dict[int, bool] = {}
        self.after: dict[int, tuple[PromptBuffer, int]] = {}
        self.next, self.used, self.version = collector.first, step, step
        self.saved = dict(collector.saved)
        self.ended: dict[tuple[int, int], Response] = {}  # (prompt, sample) -> response, for snapshots
        self.pending: tuple[Any, int] | None = None
        self.error: BaseException | None = None
        self.stopped = False
        options = self.options
        assert self.source is not None
        self.engine: SlotEngine = self.source.prepare(
            jax.tree.map(jnp.copy, params), SamplingOptions(options.temperature, options.top_k, options.top_p)
        )
        self.engine.version = step
        self.thread = threading.Thread(target=self._guarded, name="rollouts", daemon=True)
        self.thread.start()

    def renew(self, params: Any, version: int) -> None:
        """Hands over new weights, loaded between two calls of the engine; the caller may donate `params`."""
        if version > self.version:
            copied = jax.tree.map(jnp.copy, params)
            jax.block_until_ready(copied)
            with self.lock:
                self.pending, self.version = (copied, version), version
                self.lock.notify_all()

    def wait(self, acceptance: Acceptance, first: int) -> Acceptance:
        """Waits until the prompts from `first` on make a batch."""
        number = 0
        with self.lock:
            while not acceptance.complete:
                if self.error is not None:
                    raise self.error
                if first + number in self.decided:
                    acceptance.decide(number, self.decided[first + number])
                    number += 1
                else:
                    self.lock.wait(1.0)
        return acceptance

    def release(self, first: int, count: int, step: int) -> tuple[Groups, tuple[PromptBuffer, int]]:
        """The groups of a step, which the thread forgets, and the place in the stream after them."""
        with self.lock:
            numbers = range(first, first + count)
            groups = [self.pool.groups.pop(number) for number in numbers]
            responses = self.pool.joined(groups)
            for number in numbers:
                del self.decided[number]
                place = self.after.pop(number)
                for sample in range(self.options.samples_per_prompt):
                    self.ended.pop((number, sample), None)
            self.used = step + 1
            self.lock.notify_all()
        rates = np.array([group.rate() for group in groups], np.float32)
        return Groups(responses, rates), place

    def snapshot(self) -> dict[int, list[SlotResponse]]:
        """All responses to prompts that are not used yet, complete or not."""
        with self.lock:
            tickets = {ticket for group in self.pool.groups.values() for ticket in group.tickets.values()}
            partial = self.engine.peek(tickets)
            found: dict[int, list[SlotResponse]] = {}
            for number, group in self.pool.groups.items():
                own = []
                for sample in range(self.options.samples_per_prompt):
                    done = self.ended.get((number, sample))
                    own.append(done if done is not None else partial[group.tickets[sample]])
                found[number] = own  # type: ignore[assignment]
            return found | {number: group for number, group in self.saved.items() if number not in found}

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        with self.lock:
            self.stopped = True
            self.lock.notify_all()
        self.thread.join()

    def _guarded(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            with self.lock:
                self.error = error
                self.lock.notify_all()

    def _loop(self) -> None:
        judging: list[Future[tuple[list[Ticket], Responses]]] = []
        with ThreadPoolExecutor(1, "verifier") as verifier:
            while True:
                with self.lock:
                    if self.stopped:
                        return
                    self._update()
                    self._ask(verifier, judging)
                    if self.pool.running:
                        ended = self.engine.poll(timeout=0)
                        self._note(ended)
                        if ended:
                            judging.append(verifier.submit(self.pool.judge, ended))
                    self._harvest(judging)
                    if not self.pool.running and not judging and self.pending is None and not self._room():
                        self.lock.wait(1.0)
                if judging and not self.pool.running:
                    judging[0].result()
                time.sleep(0.0005)  # a lock is not fair: whoever waits for it gets it now

    def _update(self) -> None:
        if self.pending is not None:
            (params, version), self.pending = self.pending, None
            self.engine.update(params, version, running=self.options.running)

    def _room(self) -> bool:
        """Whether a prompt that is asked for now would be used before its weights are too old."""
        waiting = len(self.pool.groups)
        if self.options.filter in ("oversample", "resample"):
            waiting -= sum(not passed for passed in self.decided.values())
        ahead = self.version + 1 + self.options.max_lag - self.used
        return waiting < ahead * self.options.prompts_per_step

    def _ask(self, verifier: ThreadPoolExecutor, judging: list[Any]) -> None:
        assert self.source is not None
        while self._room():
            number, problem = self.next, self.drawing.next()
            self.after[number] = self.drawing.after.pop()
            saved = self.saved.pop(number, [])
            done = {sample: one for sample, one in enumerate(saved) if one.end != "cancelled"}
            starts = [() if sample in done else one for sample, one in enumerate(saved)]
            self.pool.ask(self.engine, self.source, number, problem, starts)
            self.next += 1
            if done:
                tickets = [self.pool.groups[number].tickets[sample] for sample in done]
                self.engine.cancel(tickets)
                ended = list(zip(tickets, done.values(), strict=True))
                self._note(ended)
                judging.append(verifier.submit(self.pool.judge, ended))

    def _note(self, ended: list[tuple[Ticket, Any]]) -> None:
        for ticket, response in ended:
            self.ended[self.pool.place(ticket)] = response
            self.pool.running.discard(ticket)

    def _harvest(self, judging: list[Any]) -> None:
        for future in [future for future in judging if future.done()]:
            judging.remove(future)
            for number in self.pool.take(*future.result()):
                if not self.pool.groups[number].tickets:
                    self.decided[number] = self.pool.passed(number)
                    self.lock.notify_all()


def _written(response: Response) -> dict[str, Any]:
    arrays = {name: np.asarray(getattr(response, name), dtype).tobytes() for name, dtype in ARRAYS.items()}
    return {"end": response.end} | {name: base64.b64encode(data).decode() for name, data in arrays.items()}


def _read(saved: dict[str, Any]) -> SlotResponse:
    data = {name: base64.b64decode(saved[name]) for name in ARRAYS}
    arrays: dict[str, Any] = {name: np.frombuffer(data[name], dtype) for name, dtype in ARRAYS.items()}
    return SlotResponse(end=saved["end"], stop_index=-1, **arrays)
