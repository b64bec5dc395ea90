"""One model, many sequences in one batch. Knows nothing of HTTP, and nothing of processes.

Each `run_step` is one decode: one row for every reply in progress and, in what is left of the step, a
chunk of the prompts that still have to be read. A request joins and leaves between any two steps. The caller
brings requests through `add_request` and `cancel_request` from any thread and calls `run_step` from one.

A mistake of ours in one reply ends that reply with a sentence; the others don't notice it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from serve.engine.batch import Batch, BatchBuilder, SequenceError
from serve.engine.cost_model import CostModel
from serve.engine.kv_cache import KVCache
from serve.engine.kv_disk import DiskKVCache
from serve.engine.kv_slots import Adapters, common_prefix_length
from serve.engine.llama import LlamaContext
from serve.engine.sequence import GRAMMAR_GRACE, Output, Request, Sequence
from serve.hardware.memory import PARKED
from serve.hardware.threads import ThreadTuner
from serve.log import log_mistake

EMIT_SECONDS = 0.03
"""Text that comes faster than this is sent in one piece: thirty pieces a second read as smoothly."""
RESERVE = 64
"""Cells that must be free beyond the prompt before a request joins those who are writing."""
WAIT_FOR_PREFIX = 32
"""A prefix that another request is computing is waited for when it is this much longer."""
UNKNOWN: Adapters = ((-1, 0.0),)
"""No request's adapters: which ones are in force is not known, and they are set anew."""
SAVE_AFTER = 10.0
"""Seconds that a prefix waits for a quiet moment before it is written to disk in a busy one."""


class Scheduler:
    """Who is written, who waits, and what each step does."""

    def __init__(
        self,
        llama: LlamaContext,
        emit: Callable[[list[Output]], None],
        *,
        disk: DiskKVCache | None = None,
        parked_bytes: int = PARKED,
        at_work: Callable[[int], None] = lambda request_id: None,
        drafting: bool = True,
    ) -> None:
        self.llama = llama
        self._emit = emit
        self.kv_cache = KVCache(llama, parked_bytes, disk)
        if disk is not None:
            disk.wake = lambda: self.run_between_steps(lambda: None)
        self._at_work = at_work
        """Told which request is worked on (0 = all that are written), so that a crash has a name."""
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._outputs: list[Output] = []
        self._adapters: Adapters = ()
        self.cost_model = CostModel(llama.n_batch)
        self._batches = BatchBuilder(llama, self.cost_model, drafting=drafting and llama.can_rewind)
        self.threads = ThreadTuner(llama.use_threads, llama.n_threads)
        self.steps = 0

    # From any thread --------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request; its outputs come from `emit`."""
        self._inbox.put(lambda: self._take(request))

    def cancel_request(self, request_id: int) -> None:
        """Drop a request; when nobody else is in the running decode, that ends at once too."""
        self._inbox.put(lambda: self._drop(request_id))
        if all(s.request.id == request_id for s in list(self._running)):
            self.llama.stop_now()

    def pause_request(self, request_id: int, paused: bool = True) -> None:
        """Let a reply rest where it is, or go on."""
        self._inbox.put(lambda: self._pause(request_id, paused))

    def run_between_steps(self, function: Callable[[], None]) -> None:
        """Run something between two steps."""
        self._inbox.put(function)

    # The one thread that steps -----------------------------------------------------------------

    def wait_for_work(self) -> None:
        """Sleep until there is something to do."""
        self._run_between(self._inbox.get())

    def run_step(self) -> bool:
        """Do one step; False when there was nothing to do."""
        while not self._inbox.empty():
            self._run_between(self._inbox.get())
        self.llama.stop_now(False)
        self._admit()
        self._settle_grammars()
        active = [s for s in self._running if not s.paused and not s.waits_for_grammar]
        if active:
            for adapters in dict.fromkeys(s.request.adapters for s in active):
                self._decode_group([s for s in active if s.request.adapters == adapters], adapters)
            self.steps += 1
        self._flush()
        stalled = [s for s in self._running if s.waits_for_grammar]
        if stalled and not active:
            stalled[0].sampler.grammar_ready(GRAMMAR_GRACE)
        busy = bool(active or stalled)
        return self._save_one_prefix(SAVE_AFTER if busy else 0.0) or busy

    def fail_all(self, error: Exception) -> None:
        """End every reply that is written or waits: what went wrong is nobody's in particular."""
        self._fail([*self._running, *self._waiting], error)
        self._flush()

    def flush_to_disk(self) -> None:
        """Write what is still to be kept on disk; call when no more steps will follow."""
        self.kv_cache.flush_to_disk()

    @property
    def status_counts(self) -> dict[str, int]:
        """What is going on, for the metrics."""
        return {
            "writing": len(self._running),
            "waiting": len(self._waiting),
            "threads": self.threads.num_threads,
        } | self.kv_cache.cell_counts

    # Who joins --------------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        try:
            self._waiting.append(Sequence(request, self.llama))
        except Exception as error:
            log_mistake(error)
            self._outputs.append(Output(request.id, finish="error", error=_mistake(error)))

    def _run_between(self, function: Callable[[], None]) -> bool:
        """Run what concerns no reply that could be ended for it; False when it broke."""
        try:
            function()
        except Exception as error:
            log_mistake(error)
            return False
        return True

    def _admit(self) -> None:
        """Let waiting requests join while there is room: urgent ones first, then in order of arrival."""
        self._waiting.sort(key=lambda s: not s.request.urgent)
        for sequence in list(self._waiting):
            try:
                if not self._has_room_for(sequence):
                    return  # the next in line is not overtaken by a smaller one
                if self._better_to_wait(sequence):
                    continue
                self._waiting.remove(sequence)
                self._join(sequence)
            except Exception as error:
                self._fail([sequence], error)

    def _has_room_for(self, sequence: Sequence) -> bool:
        if not self._running:
            return True
        reserve = min(RESERVE, sequence.request.max_tokens or RESERVE)
        # the cells of prompts that are being read are not taken yet, and are no more to be had: who joined
        # on them would be sent back, come again with the copy of its cells, and nobody would get on
        reserve += sum(s.num_uncomputed_tokens - 1 for s in self._running)
        return self.kv_cache.has_room_for(sequence.tokens, sequence.request.adapters, reserve)

    def _better_to_wait(self, sequence: Sequence) -> bool:
        """Whether another request is just computing a longer prefix of this one."""
        tokens, adapters = sequence.tokens, sequence.request.adapters
        readers = [s for s in self._running if s.num_uncomputed_tokens > 1 and not s.paused]
        readers = [s for s in readers if s.request.adapters == adapters]
        if not self.llama.can_rewind or not readers:
            return False
        coming = max(common_prefix_length(s.tokens, tokens, len(tokens) - 1) for s in readers)
        return coming - self.kv_cache.cached_length(tokens, adapters) >= WAIT_FOR_PREFIX

    def _join(self, sequence: Sequence) -> None:
        self._at_work(sequence.request.id)
        sequence.started = sequence.started or time.perf_counter()
        sequence.slot = self.kv_cache.claim_slot(sequence.tokens, sequence.request.adapters)
        sequence.num_cached_tokens = sequence.slot.num_cells
        self._running.append(sequence)
        self._at_work(0)

    def _settle_grammars(self) -> None:
        """Let replies go on whose grammar now knows what may follow, or end them by it."""
        for sequence in [s for s in self._running if s.waits_for_grammar]:
            try:
                if sequence.sampler.grammar_ready():
                    sequence.settle_grammar()
                    if sequence.output.finish is not None:
                        self._leave(sequence)
            except Exception as error:
                self._fail([sequence], error)

    # One decode -------------------------------------------------------------------------------

    def _decode_group(self, sequences: list[Sequence], adapters: Adapters) -> None:
        """One decode for replies with the same adapters; what breaks in it ends those it belongs to."""
        try:
            self._decode(sequences, adapters)
        except SequenceError as error:
            self._fail([error.sequence], error.cause)
        except Exception as error:
            self._adapters = UNKNOWN
            self._fail(sequences, error)

    def _decode(self, sequences: list[Sequence], adapters: Adapters) -> None:
        if adapters != self._adapters:
            self.llama.use_adapters(adapters)
            self._adapters = adapters
        batch = self._batches.fill_batch(sequences)
        if not batch.num_rows:
            raise RuntimeError("there are replies to write, and no row to compute")
        usual = self.cost_model.expected_seconds(batch.num_decode_rows, batch.num_prefill_rows)
        began, worked = time.perf_counter(), time.process_time()
        done = self.llama.decode(batch.num_rows)
        seconds = time.perf_counter() - began
        if done == 1:
            self._make_room()
            return
        if done == 2:
            return  # stopped by `cancel_request`: nothing of this step is kept
        if done < 0:
            for sequence, *_ in batch.parts:
                self._end(sequence, "error", f"llama.cpp could not decode (code {done})")
            return
        self._learn_cost(batch, seconds, time.process_time() - worked, usual)
        for sequence, first, count in batch.parts:
            try:
                self._advance(sequence, first, count)
            except Exception as error:
                self._fail([sequence], error)

    def _learn_cost(
        self, batch: Batch, seconds: float, processor: float, usual: float | None
    ) -> None:
        if not self.threads.in_trial:
            self.cost_model.record_step(seconds, batch.num_decode_rows, batch.num_prefill_rows)
        if self.threads.record_step(seconds, processor, usual):
            self.cost_model.reset_averages()

    def _advance(self, sequence: Sequence, first: int, count: int) -> None:
        """Take in what the decode computed for one reply, and choose its next token(s)."""
        slot = sequence.slot
        assert slot is not None
        if sequence.is_prefilling:
            slot.num_cells += count
            sequence.num_prefilled_tokens += count
            if sequence.num_uncomputed_tokens:
                return
            if not sequence.prompt_done:
                sequence.prompt_done = time.perf_counter()
                self.kv_cache.note_prompt(sequence.request.prompt, sequence.request.adapters)
            self._sample(sequence, first + count - 1, 1)
        else:
            slot.num_cells += 1
            accepted = self._sample(sequence, first, count)
            if count > 1:
                sequence.record_draft(accepted)
                slot.num_cells += accepted
                if sequence.output.finish is None:
                    self.llama.truncate_cells(slot.seq, slot.num_cells)
        self._report(sequence)

    def _sample(self, sequence: Sequence, first: int, count: int) -> int:
        """Choose tokens at consecutive rows as long as the guesses were right; returns how many were."""
        self._at_work(sequence.request.id)
        accepted = 0
        while sequence.sample_next_token(first + accepted):
            if accepted == count - 1 or sequence.waits_for_grammar:
                break
            if sequence.draft_tokens[accepted] != sequence.tokens[-1]:
                break
            accepted += 1
        self._at_work(0)
        return accepted

    def _report(self, sequence: Sequence) -> None:
        """Let the reply leave when it is done; else send what it has said when that is due."""
        if sequence.output.finish is not None:
            self._leave(sequence)
        elif (now := time.perf_counter()) - sequence.emitted_at >= EMIT_SECONDS:
            sequence.emitted_at = now
            self._outputs.append(sequence.output)
            sequence.output = Output(sequence.request.id)

    def _flush(self) -> None:
        if not self._outputs:
            return
        outputs, self._outputs = self._outputs, []
        try:
            self._emit(outputs)
        except Exception:
            for output in outputs:
                self._emit_alone(output)

    def _emit_alone(self, output: Output) -> None:
        """One output of several that could not be sent together: only its own reply ends."""
        try:
            self._emit([output])
        except Exception as error:
            self._fail([s for s in self._running if s.request.id == output.id], error)
            self._outputs = [o for o in self._outputs if o.id != output.id]
            self._emit([Output(output.id, finish="error", error=_mistake(error))])

    def _save_one_prefix(self, older_than: float) -> bool:
        try:
            return self.kv_cache.save_one_prefix(older_than=older_than)
        except Exception as error:  # a prefix that isn't kept costs time, and nothing else
            log_mistake(error)
            self._reclaim_slots()
            return True

    # Who leaves -------------------------------------------------------------------------------

    def _leave(self, sequence: Sequence) -> None:
        """The reply is done: its last output goes out, its cells stay for whoever begins the same."""
        output = sequence.output
        if output.finish in ("stop", "length"):
            output.text += sequence.detokenizer.flush_text()
        output.timings = sequence.collect_timings()
        self._outputs.append(output)
        self._running.remove(sequence)
        if not self._run_between(lambda: self._clear_up(sequence)):
            self._reclaim_slots()

    def _clear_up(self, sequence: Sequence) -> None:
        self._release_slot(sequence)
        sequence.sampler.close()

    def _release_slot(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self.kv_cache.release_slot(sequence.slot, sequence.tokens)
            sequence.slot = None

    def _end(self, sequence: Sequence, finish: str, error: str = "") -> None:
        sequence.output.finish, sequence.output.error = finish, error
        self._leave(sequence)

    def _fail(self, sequences: Iterable[Sequence], error: Exception) -> None:
        """End replies that a mistake of ours broke; nothing of their half-done step is kept."""
        log_mistake(error)
        for sequence in list(sequences):
            self._outputs.append(Output(sequence.request.id, finish="error", error=_mistake(error)))
            self._running = [s for s in self._running if s is not sequence]
            self._waiting = [s for s in self._waiting if s is not sequence]
            self._run_between(sequence.sampler.close)
        self._run_between(lambda: self._at_work(0))
        self._reclaim_slots()

    def _reclaim_slots(self) -> None:
        held = [s.slot for s in self._running if s.slot is not None]
        self._run_between(lambda: self.kv_cache.reclaim_slots(held))

    def _drop(self, request_id: int) -> None:
        for sequence in [s for s in self._waiting if s.request.id == request_id]:
            self._waiting.remove(sequence)
            sequence.sampler.close()
            self._outputs.append(Output(request_id, finish="cancelled"))
        for sequence in [s for s in self._running if s.request.id == request_id]:
            try:
                self._end(sequence, "cancelled")
            except Exception as error:
                self._fail([sequence], error)

    def _pause(self, request_id: int, paused: bool) -> None:
        for sequence in (*self._running, *self._waiting):
            if sequence.request.id == request_id:
                sequence.paused = paused

    def _make_room(self) -> None:
        """The cells are used up: forget an idle slot, else the newest reply steps back in line."""
        if self.kv_cache.evict_oldest_slot():
            return
        if len(self._running) == 1:
            self._end(self._running[0], "length")
            return
        newest = min(reversed(self._running), key=lambda s: s.request.urgent)
        self._running.remove(newest)
        self._release_slot(newest)
        self.kv_cache.evict_oldest_slot()
        self._waiting.insert(0, newest)


def _mistake(error: Exception) -> str:
    """The sentence for whoever waits; what it came from is in the log."""
    return (
        f"The reply was given up: a mistake of rig's own ({type(error).__name__}), which the server's log "
        f"shows. Other requests are not touched; try again, perhaps with fewer options."
    )
