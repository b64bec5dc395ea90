"""One model, many sequences in one batch. Knows nothing of HTTP, and nothing of processes.

Each `run_step` is one decode: one row for every reply in progress and, in what is left of the step, a
chunk of the prompts that still have to be read. A request joins and leaves between any two steps. The caller
brings jobs through `add_request` and `cancel_request` from any thread and calls `run_step` from one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue

from serve.engine.cost_model import CostModel
from serve.engine.kv_cache import KVCache
from serve.engine.kv_disk import DiskKVCache
from serve.engine.kv_slots import Adapters, common_prefix_length
from serve.engine.llama import FLASH_TILE, LlamaContext
from serve.engine.prompt_lookup import LONGEST
from serve.engine.sequence import Output, Request, Sequence
from serve.engine.threads import ThreadTuner
from serve.hardware.memory import PARKED

EMIT_SECONDS = 0.03
"""Text that comes faster than this is sent in one piece: thirty pieces a second read as smoothly."""
RESERVE = 64
"""Cells that must be free beyond the prompt before a request joins those who are writing."""
WAIT_FOR_PREFIX = 32
"""A prefix that another request is computing is waited for when it is this much longer."""
SAVE_AFTER = 10.0
"""Seconds that a prefix waits for a quiet moment before it is written to disk in a busy one."""


class Scheduler:
    """The batch: who writes, who waits, and what each step does."""

    def __init__(
        self,
        native: LlamaContext,
        emit: Callable[[list[Output]], None],
        *,
        disk: DiskKVCache | None = None,
        parked_bytes: int = PARKED,
        at_work: Callable[[int], None] = lambda job: None,
        drafting: bool = True,
    ) -> None:
        self.llama = native
        self._emit = emit
        self.kv_cache = KVCache(native, parked_bytes, disk)
        if disk is not None:
            disk.wake = lambda: self.run_between_steps(lambda: None)
        self._at_work = at_work
        """Told which job is worked on (0 = all that write), so that a crash has a name."""
        self._drafting = drafting and native.can_rewind
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: list[Sequence] = []
        self._writing: list[Sequence] = []
        self._events: list[Output] = []
        self._adapters: Adapters = ()
        self.cost_model = CostModel(native.n_batch)
        self.threads = ThreadTuner(native.use_threads, native.n_threads)
        self.steps = 0

    # From any thread --------------------------------------------------------------------------

    def add_request(self, job: Request) -> None:
        """Queue a job; its events come from `emit`."""
        self._inbox.put(lambda: self._waiting.append(Sequence(job, self.llama)))

    def cancel_request(self, job: int) -> None:
        """Drop a job; when nobody else is in the running decode, that ends at once too."""
        self._inbox.put(lambda: self._drop(job))
        if all(w.request.id == job for w in list(self._writing)):
            self.llama.stop_now()

    def pause_request(self, job: int, paused: bool = True) -> None:
        """Let a reply rest where it is, or go on."""
        self._inbox.put(lambda: self._pause(job, paused))

    def run_between_steps(self, function: Callable[[], None]) -> None:
        """Run something between two steps."""
        self._inbox.put(function)

    # The one thread that steps -----------------------------------------------------------------

    def wait_for_work(self) -> None:
        """Sleep until there is something to do."""
        self._inbox.get()()

    def run_step(self) -> bool:
        """Do one step; False when there was nothing to do."""
        while not self._inbox.empty():
            self._inbox.get()()
        self.llama.stop_now(False)
        self._admit()
        active = [w for w in self._writing if not w.paused]
        if active:
            for adapters in dict.fromkeys(w.request.adapters for w in active):
                self._decode([w for w in active if w.request.adapters == adapters], adapters)
            self.steps += 1
        self._flush()
        saved = self.kv_cache.save_one_prefix(older_than=SAVE_AFTER if active else 0.0)
        return bool(active) or saved

    def flush_to_disk(self) -> None:
        """Write what is still to be kept on disk; call when no more steps will follow."""
        self.kv_cache.flush_to_disk()

    @property
    def status_counts(self) -> dict[str, int]:
        """What is going on, for the metrics."""
        return {
            "writing": len(self._writing),
            "waiting": len(self._waiting),
            "threads": self.threads.num_threads,
        } | self.kv_cache.cell_counts

    def _admit(self) -> None:
        """Let waiting jobs join while there is room: urgent ones first, then in order of arrival."""
        self._waiting.sort(key=lambda w: not w.request.urgent)
        for writing in list(self._waiting):
            if not self._room_for(writing):
                return  # the next in line is not overtaken by a smaller one
            if self._better_to_wait(writing):
                continue
            self._waiting.remove(writing)
            self._join(writing)

    def _room_for(self, writing: Sequence) -> bool:
        if not self._writing:
            return True
        reserve = min(RESERVE, writing.request.max_tokens or RESERVE)
        return self.kv_cache.has_room_for(writing.tokens, writing.request.adapters, reserve)

    def _better_to_wait(self, writing: Sequence) -> bool:
        """Whether another job is just computing a longer prefix of this one."""
        tokens, adapters = writing.tokens, writing.request.adapters
        readers = [w for w in self._writing if w.num_uncomputed_tokens > 1 and not w.paused]
        readers = [w for w in readers if w.request.adapters == adapters]
        if not self.llama.can_rewind or not readers:
            return False
        coming = max(common_prefix_length(w.tokens, tokens, len(tokens) - 1) for w in readers)
        return coming - self.kv_cache.cached_length(tokens, adapters) >= WAIT_FOR_PREFIX

    def _join(self, writing: Sequence) -> None:
        self._at_work(writing.request.id)
        writing.started = writing.started or time.perf_counter()
        writing.slot = self.kv_cache.claim_slot(writing.tokens, writing.request.adapters)
        writing.num_cached_tokens = writing.slot.num_cells
        self._writing.append(writing)
        self._at_work(0)

    def _decode(self, group: list[Sequence], adapters: Adapters) -> None:
        """One decode for replies with the same adapters."""
        if adapters != self._adapters:
            self.llama.use_adapters(adapters)
            self._adapters = adapters
        rows, last, reading = self._fill(group)
        if not rows:
            raise RuntimeError("there are replies to write, and no row to compute")
        usual = self.cost_model.expected_seconds(rows - reading, reading)
        began, worked = time.perf_counter(), time.process_time()
        done = self.llama.decode(rows)
        seconds = time.perf_counter() - began
        if done == 1:
            self._make_room()
            return
        if done == 2:
            return  # stopped by `cancel_request`: nothing of this step is kept
        if done < 0:
            for writing, *_ in last:
                self._end(writing, "error", f"llama.cpp could not decode (code {done})")
            return
        if not self.threads.in_trial:
            self.cost_model.record_step(seconds, rows - reading, reading)
        if self.threads.record_step(seconds, time.process_time() - worked, usual):
            self.cost_model.reset_averages()
        for writing, first, count in last:
            self._advance(writing, first, count)

    def _fill(self, group: list[Sequence]) -> tuple[int, list[tuple[Sequence, int, int]], int]:
        """Write the batch; returns rows, (writing, its first row, its rows), rows of prompts."""
        native = self.llama
        plan: list[tuple[Sequence, int, int]] = []
        writers = [w for w in group if w.num_uncomputed_tokens == 1]
        for row, writing in enumerate(writers):
            resident = writing.slot
            assert resident is not None
            native.token[row] = writing.tokens[-1]
            native.pos[row] = resident.num_cells
            native.seq[row] = resident.seq
            native.wants_logits[row] = 1
            plan.append((writing, row, 1))
        row = self._add_drafts(plan) if self._drafting and plan else len(plan)
        reading = 0
        readers = [w for w in group if w.num_uncomputed_tokens > 1]
        if readers:
            readers.sort(key=lambda w: not w.request.urgent)
            room = min(self.cost_model.prefill_chunk_size(len(writers)), native.n_batch - row)
            for writing in readers:
                count = min(writing.num_uncomputed_tokens, room - reading)
                if count <= 0:
                    break
                if (
                    count >= 2 * FLASH_TILE
                    and 0 < writing.num_uncomputed_tokens - count < FLASH_TILE
                ):
                    count -= FLASH_TILE  # no short rest, which would be rounded otherwise
                self._add_chunk(writing, row, count)
                plan.append((writing, row, count))
                row += count
                reading += count
        return row, plan, reading

    def _add_chunk(self, writing: Sequence, row: int, count: int) -> None:
        resident = writing.slot
        assert resident is not None
        native, held, end = self.llama, resident.num_cells, row + count
        native.token[row:end] = writing.tokens[held : held + count]
        native.pos[row:end] = range(held, held + count)
        native.seq[row:end] = resident.seq
        native.wants_logits[row:end] = 0
        if held + count == len(writing.tokens):
            native.wants_logits[end - 1] = 1

    def _add_drafts(self, plan: list[tuple[Sequence, int, int]]) -> int:
        """Let guesses follow the writers' rows where that pays; returns the rows of the batch."""
        native, row = self.llama, 0
        guesses = [w.propose_draft(min(LONGEST, w.num_tokens_left - 1)) for w, *_ in plan]
        if any(guesses) and native.n_batch >= (1 + LONGEST) * len(plan):
            chances = [w.draft_chances(g) for (w, *_), g in zip(plan, guesses, strict=True)]
            counts = self.cost_model.draft_lengths(len(plan), chances)
        else:
            counts = [0] * len(plan)
        for (writing, *_), guess, n in zip(plan, guesses, counts, strict=True):
            writing.draft_tokens = guess[:n]
        if not any(counts):
            return len(plan)
        for i, (writing, _, _) in enumerate(plan):
            resident = writing.slot
            assert resident is not None
            count = 1 + len(writing.draft_tokens)
            end = row + count
            native.token[row:end] = [writing.tokens[-1], *writing.draft_tokens]
            native.pos[row:end] = range(resident.num_cells, resident.num_cells + count)
            native.seq[row:end] = resident.seq
            native.wants_logits[row:end] = 1
            plan[i] = (writing, row, count)
            row = end
        return row

    def _advance(self, writing: Sequence, first: int, count: int) -> None:
        """Take in what the decode computed for one reply, and choose its next token(s)."""
        resident = writing.slot
        assert resident is not None
        reading = writing.num_uncomputed_tokens > 1 or not writing.prompt_done
        if reading:
            resident.num_cells += count
            writing.num_prefilled_tokens += count
            if writing.num_uncomputed_tokens:
                return
            if not writing.prompt_done:
                writing.prompt_done = time.perf_counter()
                self.kv_cache.note_prompt(writing.request.prompt, writing.request.adapters)
            rows = [first + count - 1]
        else:
            rows = list(range(first, first + count))
            resident.num_cells += 1
        self._at_work(writing.request.id)
        taken = 0
        for row in rows:
            if not writing.sample_next_token(row):
                break
            if row == rows[-1] or writing.draft_tokens[taken] != writing.tokens[-1]:
                break
            taken += 1
        self._at_work(0)
        if not reading and count > 1:
            writing.num_draft_tokens += count - 1
            writing.num_accepted_tokens += taken
            writing.learn_forced(taken)
            resident.num_cells += taken
            if writing.output.finish is None:
                self.llama.truncate_cells(resident.seq, resident.num_cells)
        if writing.output.finish is not None:
            self._leave(writing)
        elif (now := time.perf_counter()) - writing.emitted_at >= EMIT_SECONDS:
            writing.emitted_at = now
            self._events.append(writing.output)
            writing.output = Output(writing.request.id)

    def _leave(self, writing: Sequence) -> None:
        """The reply is done: its last event goes out, its cells stay for whoever begins the same."""
        event = writing.output
        if event.finish in ("stop", "length"):
            event.text += writing.detokenizer.flush_text()
        event.timings = writing.collect_timings()
        self._events.append(event)
        writing.sampler.free_chain()
        self._writing.remove(writing)
        self._rest(writing)

    def _rest(self, writing: Sequence) -> None:
        if writing.slot is not None:
            self.kv_cache.release_slot(writing.slot, writing.tokens)
            writing.slot = None

    def _end(self, writing: Sequence, finish: str, error: str = "") -> None:
        writing.output.finish, writing.output.error = finish, error
        self._leave(writing)

    def _drop(self, job: int) -> None:
        for writing in [w for w in self._waiting if w.request.id == job]:
            self._waiting.remove(writing)
            writing.sampler.free_chain()
            self._events.append(Output(job, finish="cancelled"))
        for writing in [w for w in self._writing if w.request.id == job]:
            self._end(writing, "cancelled")

    def _pause(self, job: int, paused: bool) -> None:
        for writing in (*self._writing, *self._waiting):
            if writing.request.id == job:
                writing.paused = paused

    def _make_room(self) -> None:
        """The cells are used up: forget an idle sequence, else the newest reply steps back in line."""
        if self.kv_cache.evict_oldest_slot():
            return
        if len(self._writing) == 1:
            self._end(self._writing[0], "length")
            return
        newest = min(reversed(self._writing), key=lambda w: w.request.urgent)
        self._writing.remove(newest)
        self._rest(newest)
        self.kv_cache.evict_oldest_slot()
        self._waiting.insert(0, newest)

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._emit(events)
