"""One model, many sequences in one batch. Knows nothing of HTTP, and nothing of processes.

Each `step` is one decode: one row for every reply in progress and, in what is left of the step, a chunk of
the prompts that still have to be read. A request joins and leaves between any two steps. The caller
brings jobs through `submit` and `cancel` from any thread and calls `step` from one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue

from serve.drafting import LONGEST
from serve.engine_memory import Memory
from serve.engine_native import FLASH_TILE, Native
from serve.engine_pace import Pace
from serve.engine_reply import Event, Job, Writing
from serve.engine_threads import Threads
from serve.fit import PARKED
from serve.prefix import Adapters, common_length
from serve.prefix_disk import PrefixDisk

EMIT_SECONDS = 0.03
"""Text that comes faster than this is sent in one piece: thirty pieces a second read as smoothly."""
RESERVE = 64
"""Cells that must be free beyond the prompt before a request joins those who are writing."""
WAIT_FOR_PREFIX = 32
"""A prefix that another request is computing is waited for when it is this much longer."""
SAVE_AFTER = 10.0
"""Seconds that a prefix waits for a quiet moment before it is written to disk in a busy one."""


class Engine:
    """The batch: who writes, who waits, and what each step does."""

    def __init__(
        self,
        native: Native,
        emit: Callable[[list[Event]], None],
        *,
        disk: PrefixDisk | None = None,
        parked_bytes: int = PARKED,
        at_work: Callable[[int], None] = lambda job: None,
        drafting: bool = True,
    ) -> None:
        self.native = native
        self._emit = emit
        self.memory = Memory(native, parked_bytes, disk)
        if disk is not None:
            disk.wake = lambda: self.call(lambda: None)
        self._at_work = at_work
        """Told which job is worked on (0 = all that write), so that a crash has a name."""
        self._drafting = drafting and native.can_rewind
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: list[Writing] = []
        self._writing: list[Writing] = []
        self._events: list[Event] = []
        self._adapters: Adapters = ()
        self.pace = Pace(native.n_batch)
        self.threads = Threads(native.use_threads, native.n_threads)
        self.steps = 0

    # From any thread --------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job; its events come from `emit`."""
        self._inbox.put(lambda: self._waiting.append(Writing(job, self.native)))

    def cancel(self, job: int) -> None:
        """Drop a job; when nobody else is in the running decode, that ends at once too."""
        self._inbox.put(lambda: self._drop(job))
        if all(w.job.id == job for w in list(self._writing)):
            self.native.stop_now()

    def pause(self, job: int, paused: bool = True) -> None:
        """Let a reply rest where it is, or go on."""
        self._inbox.put(lambda: self._pause(job, paused))

    def call(self, function: Callable[[], None]) -> None:
        """Run something between two steps."""
        self._inbox.put(function)

    # The one thread that steps -----------------------------------------------------------------

    def wait(self) -> None:
        """Sleep until there is something to do."""
        self._inbox.get()()

    def step(self) -> bool:
        """Do one step; False when there was nothing to do."""
        while not self._inbox.empty():
            self._inbox.get()()
        self.native.stop_now(False)
        self._admit()
        active = [w for w in self._writing if not w.paused]
        if active:
            for adapters in dict.fromkeys(w.job.adapters for w in active):
                self._decode([w for w in active if w.job.adapters == adapters], adapters)
            self.steps += 1
        self._flush()
        saved = self.memory.save_one(older_than=SAVE_AFTER if active else 0.0)
        return bool(active) or saved

    def finish(self) -> None:
        """Write what is still to be kept on disk; call when no more steps will follow."""
        self.memory.finish()

    @property
    def counts(self) -> dict[str, int]:
        """What is going on, for the metrics."""
        return {
            "writing": len(self._writing),
            "waiting": len(self._waiting),
            "threads": self.threads.now,
        } | self.memory.counts

    def _admit(self) -> None:
        """Let waiting jobs join while there is room: urgent ones first, then in order of arrival."""
        self._waiting.sort(key=lambda w: not w.job.urgent)
        for writing in list(self._waiting):
            if not self._room_for(writing):
                return  # the next in line is not overtaken by a smaller one
            if self._better_to_wait(writing):
                continue
            self._waiting.remove(writing)
            self._join(writing)

    def _room_for(self, writing: Writing) -> bool:
        if not self._writing:
            return True
        reserve = min(RESERVE, writing.job.max_tokens or RESERVE)
        return self.memory.room_for(writing.tokens, writing.job.adapters, reserve)

    def _better_to_wait(self, writing: Writing) -> bool:
        """Whether another job is just computing a longer prefix of this one."""
        tokens, adapters = writing.tokens, writing.job.adapters
        readers = [w for w in self._writing if w.todo > 1 and not w.paused]
        readers = [w for w in readers if w.job.adapters == adapters]
        if not self.native.can_rewind or not readers:
            return False
        coming = max(common_length(w.tokens, tokens, len(tokens) - 1) for w in readers)
        return coming - self.memory.ready(tokens, adapters) >= WAIT_FOR_PREFIX

    def _join(self, writing: Writing) -> None:
        self._at_work(writing.job.id)
        writing.started = writing.started or time.perf_counter()
        writing.resident = self.memory.claim(writing.tokens, writing.job.adapters)
        writing.reused = writing.resident.held
        self._writing.append(writing)
        self._at_work(0)

    def _decode(self, group: list[Writing], adapters: Adapters) -> None:
        """One decode for replies with the same adapters."""
        if adapters != self._adapters:
            self.native.use_adapters(adapters)
            self._adapters = adapters
        rows, last, reading = self._fill(group)
        if not rows:
            raise RuntimeError("there are replies to write, and no row to compute")
        usual = self.pace.usual(rows - reading, reading)
        began, worked = time.perf_counter(), time.process_time()
        done = self.native.decode(rows)
        seconds = time.perf_counter() - began
        if done == 1:
            self._make_room()
            return
        if done == 2:
            return  # stopped by `cancel`: nothing of this step is kept
        if done < 0:
            for writing, *_ in last:
                self._end(writing, "error", f"llama.cpp could not decode (code {done})")
            return
        if not self.threads.trying:
            self.pace.learn(seconds, rows - reading, reading)
        if self.threads.step(seconds, time.process_time() - worked, usual):
            self.pace.forget()
        for writing, first, count in last:
            self._advance(writing, first, count)

    def _fill(self, group: list[Writing]) -> tuple[int, list[tuple[Writing, int, int]], int]:
        """Write the batch; returns rows, (writing, its first row, its rows), rows of prompts."""
        native = self.native
        plan: list[tuple[Writing, int, int]] = []
        writers = [w for w in group if w.todo == 1]
        for row, writing in enumerate(writers):
            resident = writing.resident
            assert resident is not None
            native.token[row] = writing.tokens[-1]
            native.pos[row] = resident.held
            native.seq[row] = resident.seq
            native.wants[row] = 1
            plan.append((writing, row, 1))
        row = self._add_drafts(plan) if self._drafting and plan else len(plan)
        reading = 0
        readers = [w for w in group if w.todo > 1]
        if readers:
            readers.sort(key=lambda w: not w.job.urgent)
            room = min(self.pace.chunk(len(writers)), native.n_batch - row)
            for writing in readers:
                count = min(writing.todo, room - reading)
                if count <= 0:
                    break
                if count >= 2 * FLASH_TILE and 0 < writing.todo - count < FLASH_TILE:
                    count -= FLASH_TILE  # no short rest, which would be rounded otherwise
                self._add_chunk(writing, row, count)
                plan.append((writing, row, count))
                row += count
                reading += count
        return row, plan, reading

    def _add_chunk(self, writing: Writing, row: int, count: int) -> None:
        resident = writing.resident
        assert resident is not None
        native, held, end = self.native, resident.held, row + count
        native.token[row:end] = writing.tokens[held : held + count]
        native.pos[row:end] = range(held, held + count)
        native.seq[row:end] = resident.seq
        native.wants[row:end] = 0
        if held + count == len(writing.tokens):
            native.wants[end - 1] = 1

    def _add_drafts(self, plan: list[tuple[Writing, int, int]]) -> int:
        """Let guesses follow the writers' rows where that pays; returns the rows of the batch."""
        native, row = self.native, 0
        guesses = [w.guesses(min(LONGEST, w.left - 1)) for w, *_ in plan]
        if any(guesses) and native.n_batch >= (1 + LONGEST) * len(plan):
            chances = [w.chances(g) for (w, *_), g in zip(plan, guesses, strict=True)]
            counts = self.pace.guesses(len(plan), chances)
        else:
            counts = [0] * len(plan)
        for (writing, *_), guess, n in zip(plan, guesses, counts, strict=True):
            writing.draft = guess[:n]
        if not any(counts):
            return len(plan)
        for i, (writing, _, _) in enumerate(plan):
            resident = writing.resident
            assert resident is not None
            count = 1 + len(writing.draft)
            end = row + count
            native.token[row:end] = [writing.tokens[-1], *writing.draft]
            native.pos[row:end] = range(resident.held, resident.held + count)
            native.seq[row:end] = resident.seq
            native.wants[row:end] = 1
            plan[i] = (writing, row, count)
            row = end
        return row

    def _advance(self, writing: Writing, first: int, count: int) -> None:
        """Take in what the decode computed for one reply, and choose its next token(s)."""
        resident = writing.resident
        assert resident is not None
        reading = writing.todo > 1 or not writing.prompt_done
        if reading:
            resident.held += count
            writing.read += count
            if writing.todo:
                return
            if not writing.prompt_done:
                writing.prompt_done = time.perf_counter()
                self.memory.note(writing.job.prompt, writing.job.adapters)
            rows = [first + count - 1]
        else:
            rows = list(range(first, first + count))
            resident.held += 1
        self._at_work(writing.job.id)
        taken = 0
        for row in rows:
            if not writing.grow(row):
                break
            if row == rows[-1] or writing.draft[taken] != writing.tokens[-1]:
                break
            taken += 1
        self._at_work(0)
        if not reading and count > 1:
            writing.drafted += count - 1
            writing.draft_taken += taken
            writing.learn_forced(taken)
            resident.held += taken
            if writing.event.finish is None:
                self.native.cut(resident.seq, resident.held)
        if writing.event.finish is not None:
            self._leave(writing)
        elif (now := time.perf_counter()) - writing.emitted_at >= EMIT_SECONDS:
            writing.emitted_at = now
            self._events.append(writing.event)
            writing.event = Event(writing.job.id)

    def _leave(self, writing: Writing) -> None:
        """The reply is done: its last event goes out, its cells stay for whoever begins the same."""
        event = writing.event
        if event.finish in ("stop", "length"):
            event.text += writing.text.close()
        event.timings = writing.timings()
        self._events.append(event)
        writing.sampler.close()
        self._writing.remove(writing)
        self._rest(writing)

    def _rest(self, writing: Writing) -> None:
        if writing.resident is not None:
            self.memory.rest(writing.resident, writing.tokens)
            writing.resident = None

    def _end(self, writing: Writing, finish: str, error: str = "") -> None:
        writing.event.finish, writing.event.error = finish, error
        self._leave(writing)

    def _drop(self, job: int) -> None:
        for writing in [w for w in self._waiting if w.job.id == job]:
            self._waiting.remove(writing)
            writing.sampler.close()
            self._events.append(Event(job, finish="cancelled"))
        for writing in [w for w in self._writing if w.job.id == job]:
            self._end(writing, "cancelled")

    def _pause(self, job: int, paused: bool) -> None:
        for writing in (*self._writing, *self._waiting):
            if writing.job.id == job:
                writing.paused = paused

    def _make_room(self) -> None:
        """The cells are used up: forget an idle sequence, else the newest reply steps back in line."""
        if self.memory.make_room():
            return
        if len(self._writing) == 1:
            self._end(self._writing[0], "length")
            return
        newest = min(reversed(self._writing), key=lambda w: w.job.urgent)
        self._writing.remove(newest)
        self._rest(newest)
        self.memory.make_room()
        self._waiting.insert(0, newest)

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._emit(events)
