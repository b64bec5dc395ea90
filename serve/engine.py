"""One model, many sequences in one batch. Knows nothing of HTTP, and nothing of processes.

Each `step` is one decode: one row for every reply in progress and, in what is left of the step, a chunk of
the prompts that still have to be read. A request joins and leaves between any two steps. The caller
brings jobs through `submit` and `cancel` from any thread and calls `step` from one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from serve.drafting import LONGEST, Drafter
from serve.engine_native import FLASH_TILE, Native
from serve.engine_pace import Pace
from serve.engine_threads import Threads
from serve.prefix import Adapters, Resident, Residents, common_length
from serve.prefix_disk import PrefixDisk
from serve.prefix_parked import WORTH_KEEPING, Copy, Parked
from serve.sampling import Sampler, Sampling, top_logprobs
from serve.stops import Text

EMIT_SECONDS = 0.03
"""Text that comes faster than this is sent in one piece: thirty pieces a second read as smoothly."""
RESERVE = 64
"""Cells that must be free beyond the prompt before a request joins those who are writing."""
WAIT_FOR_PREFIX = 32
"""A prefix that another request is computing is waited for when it is this much longer."""

SAVE_AFTER = 10.0
"""Seconds that a prefix waits for a quiet moment before it is written to disk in a busy one."""


@dataclass(frozen=True)
class Job:
    """One reply to write."""

    id: int
    prompt: list[int]
    max_tokens: int | None = None
    """None = as many as the context holds."""
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()
    matcher: Any = None
    """A grammar's state (llguidance.LLMatcher), or None."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report for each token; None = nothing."""
    adapters: Adapters = ()
    urgent: bool = True
    """A person waits for it: its prompt is read first."""
    already: Sequence[int] = ()
    """Tokens of this reply that were written and sent before (by a process that died)."""


@dataclass
class Event:
    """What became of a job in one step."""

    id: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str | None = None
    """`stop`, `length`, `cancelled`, `refused` (the request's own fault), or `error`."""
    error: str = ""
    timings: dict[str, Any] = field(default_factory=dict)


class Writing:
    """A job on its way: its sequence, its sampler, its text, its times."""

    def __init__(self, job: Job, native: Native) -> None:
        self.job = job
        self.tokens = [*job.prompt, *job.already]
        self.resident: Resident | None = None
        self.sampler = Sampler(native, job.sampling, job.matcher)
        self.text = Text(job.stops)
        self.drafter = Drafter(self.tokens)
        self.draft: list[int] = []
        self.paused = False
        self.event = Event(job.id)
        self.emitted_at = 0.0
        self.started = 0.0
        self.prompt_done = 0.0
        self.reused = 0
        self.read = 0
        self.drafted = self.draft_taken = 0
        self.by_grammar = False
        """Whether the guesses of this step come from the grammar."""
        self.forced_trust = 0.9
        for token in job.prompt[-job.sampling.repeat_last_n :] if job.sampling.penalises else ():
            self.sampler.accept(token, generated=False)
        for token in job.already:
            self.sampler.accept(token)
            self.text.feed(native.piece(token))

    @property
    def written(self) -> int:
        """Tokens of the reply so far."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def todo(self) -> int:
        """Tokens that are not yet in memory: 1 while writing, more while reading the prompt."""
        return len(self.tokens) - (self.resident.held if self.resident else 0)

    def guesses(self, limit: int) -> list[int]:
        """How the reply may go on: by its grammar where that leaves no choice, else by its prompt."""
        if not self.prompt_done:
            return []
        forced = self.sampler.forced(limit) if limit > 0 else []
        self.by_grammar = bool(forced)
        return forced or self.drafter.propose(limit)

    def chances(self, guesses: list[int]) -> list[float]:
        """How likely the first guess is right, the first two, ..."""
        trust = self.forced_trust if self.by_grammar else self.drafter.trust
        return [trust ** (n + 1) for n in range(len(guesses))]

    def learn_forced(self, taken: int) -> None:
        """Note how far guesses by the grammar were right: the model may cut its words otherwise."""
        if self.by_grammar:
            for n in range(min(taken + 1, len(self.draft))):
                self.forced_trust += 0.1 * ((n < taken) - self.forced_trust)

    def timings(self) -> dict[str, Any]:
        """Figures in llama-server's form; times in milliseconds."""
        now = time.perf_counter()
        reading = max(self.prompt_done - self.started, 1e-6) * 1000
        writing = max(now - self.prompt_done, 1e-6) * 1000
        n = self.written - len(self.job.already)
        found: dict[str, Any] = {
            "cache_n": self.reused,
            "prompt_n": self.read,
            "prompt_ms": round(reading, 3),
            "prompt_per_token_ms": round(reading / max(self.read, 1), 3),
            "prompt_per_second": round(self.read / reading * 1000, 3),
            "predicted_n": n,
            "predicted_ms": round(writing, 3),
            "predicted_per_token_ms": round(writing / max(n, 1), 3),
            "predicted_per_second": round(n / writing * 1000, 3),
        }
        if self.drafted:
            found |= {"draft_n": self.drafted, "draft_n_accepted": self.draft_taken}
        return found


class Engine:
    """The batch: who writes, who waits, and what each step does."""

    def __init__(
        self,
        native: Native,
        emit: Callable[[list[Event]], None],
        *,
        disk: PrefixDisk | None = None,
        parked_bytes: int = 256 << 20,
        at_work: Callable[[int], None] = lambda job: None,
        drafting: bool = True,
    ) -> None:
        self.native = native
        self._emit = emit
        self._parked = Parked(parked_bytes)
        self._disk = disk
        if disk is not None:
            disk.wake = lambda: self.call(lambda: None)
        self._at_work = at_work
        """Told which job is worked on (0 = all that write), so that a crash has a name."""
        self._drafting = drafting and native.can_rewind
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._residents = Residents(native.n_seq)
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
        saved = self._save_one(older_than=SAVE_AFTER if active else 0.0)
        return bool(active) or saved

    @property
    def counts(self) -> dict[str, int]:
        """What is going on, for the metrics."""
        return {
            "writing": len(self._writing),
            "waiting": len(self._waiting),
            "cells_used": self._residents.used,
            "cells": self.native.n_ctx,
            "sequences": sum(1 for _ in self._residents),
            "parked_bytes": self._parked.bytes,
            "threads": self.threads.now,
        }

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
        room = self.native.n_ctx - self._residents.pinned
        found, common = self._residents.best(writing.tokens, writing.job.adapters)
        mine = common if found is not None and found.busy else 0
        some_idle = self._residents.oldest_idle() is not None
        free_sequence = not self._residents.full or some_idle
        reserve = min(RESERVE, writing.job.max_tokens or RESERVE)
        return free_sequence and len(writing.tokens) - mine + reserve <= room

    def _better_to_wait(self, writing: Writing) -> bool:
        """Whether another job is just computing a longer prefix of this one."""
        tokens, adapters = writing.tokens, writing.job.adapters
        readers = [w for w in self._writing if w.todo > 1 and not w.paused]
        readers = [w for w in readers if w.job.adapters == adapters]
        if not self.native.can_rewind or not readers:
            return False
        coming = max(common_length(w.tokens, tokens, len(tokens) - 1) for w in readers)
        _, ready = self._residents.best(tokens, adapters)
        ready = max(ready, self._parked.longest(tokens, adapters)[1])
        return coming - ready >= WAIT_FOR_PREFIX

    def _join(self, writing: Writing) -> None:
        self._at_work(writing.job.id)
        writing.started = writing.started or time.perf_counter()
        tokens, adapters = writing.tokens, writing.job.adapters
        source, common = None, 0
        if self.native.can_rewind:
            source, common = self._begin_of(tokens, adapters)
            self._retire_all(keep=source)
        if source is not None and not source.busy and common >= source.held - 1:
            resident = source  # it ends inside this prompt: go on in the same place
            resident.busy, resident.tokens = True, tokens
        else:
            while self._residents.full and self._retire_oldest(keep=source):
                pass
            resident = self._residents.add(tokens, adapters)
            self.native.cut(resident.seq)
            if source is not None and common:
                self.native.share(source.seq, resident.seq, common)
                resident.source, resident.shared = source, common
        if source is not None:
            self._residents.touch(source)
        if resident.held > common:
            self.native.cut(resident.seq, common)
        resident.held = common
        writing.resident = resident
        writing.reused = common
        self._writing.append(writing)
        self._at_work(0)

    def _begin_of(self, tokens: list[int], adapters: Adapters) -> tuple[Resident | None, int]:
        """The sequence with the longest beginning of `tokens`, brought from a copy or from disk if need be.

        At least one token is always left to compute: its scores choose the next one.
        """
        most = len(tokens) - 1
        resident, common = self._residents.best(tokens, adapters)
        copy, parked = self._parked.longest(tokens, adapters, more_than=common)
        kept = None
        if self._disk is not None:
            kept = self._disk.longest(tokens, adapters, more_than=max(common, parked))
        if kept is not None and self._disk is not None:
            cells = self._disk.read(kept)
            if cells is not None and (found := self._bring(kept.tokens, adapters, cells)):
                return found, min(kept.common, most)
            if cells is not None:
                self._disk.drop(kept)
        if copy is not None:
            self._parked.touch(copy)
            if found := self._bring(copy.tokens, adapters, copy.cells):
                return found, min(parked, most)
        return resident, min(common, most)

    def _bring(self, tokens: list[int], adapters: Adapters, cells: Any) -> Resident | None:
        """Put copied cells into a sequence of their own; None when there is no room for them."""
        while self._residents.full or self._residents.used + len(tokens) > self.native.n_ctx:
            if not self._retire_oldest():
                return None
        resident = self._residents.add(list(tokens), adapters)
        self.native.cut(resident.seq)
        resident.busy = False
        if not self.native.restore(resident.seq, cells):
            self._forget(resident)
            return None
        resident.held = len(tokens)
        return resident

    def _retire_all(self, keep: Resident | None) -> None:
        """Clear the context of sequences that rest."""
        for resident in [r for r in self._residents if not r.busy and r is not keep]:
            self._retire(resident)

    def _retire_oldest(self, keep: Resident | None = None) -> bool:
        """Clear away the resting sequence that was used longest ago; False when there is none."""
        oldest = self._residents.oldest_idle(keep)
        if oldest is None:
            return False
        self._retire(oldest)
        return True

    def _retire(self, resident: Resident) -> None:
        """Take a sequence out of the context, and keep a copy if it holds much that no other holds."""
        tokens, adapters = resident.tokens[: resident.held], resident.adapters
        others = (r for r in self._residents if r is not resident and r.adapters == adapters)
        known = max((common_length(r.tokens, tokens, r.held) for r in others), default=0)
        known = max(known, self._parked.longest(tokens, adapters)[1])
        if len(tokens) - known >= WORTH_KEEPING:
            size = self.native.state_size(resident.seq)
            if self._parked.takes(size):
                self._parked.add(Copy(tokens, adapters, self.native.state(resident.seq)))
        self._forget(resident)

    def _forget(self, resident: Resident) -> None:
        self.native.cut(resident.seq)
        self._residents.remove(resident)

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
            self._make_room(group)
            return
        if done == 2:
            return  # stopped by `cancel`: nothing of this step is kept
        if done < 0:
            for writing in [w for w, *_ in last]:
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
        guesses = [w.guesses(min(LONGEST, self._left(w) - 1)) for w, *_ in plan]
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

    def _left(self, writing: Writing) -> int:
        """Tokens that the reply may still have."""
        left = self.native.n_ctx - len(writing.tokens)
        if writing.job.max_tokens is not None:
            left = min(left, writing.job.max_tokens - writing.written)
        return left

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
                self._note_prompt(writing)
            rows = [first + count - 1]
        else:
            rows = list(range(first, first + count))
            resident.held += 1
        self._at_work(writing.job.id)
        taken = 0
        for row in rows:
            if not self._write_token(writing, row):
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

    def _write_token(self, writing: Writing, row: int) -> bool:
        """Choose one token; False when the reply is done."""
        native, event = self.native, writing.event
        token = writing.sampler.pick(row)
        if writing.job.logprobs is not None:
            event.logprobs.append(top_logprobs(native.logits(row), token, writing.job.logprobs))
        writing.tokens.append(token)
        event.tokens.append(token)
        if self._drafting:
            writing.drafter.push()
        if native.is_end(token):
            event.finish = "stop"
        else:
            event.text += writing.text.feed(native.piece(token))
            if writing.text.stopped or writing.sampler.done:
                event.finish = "stop"
            elif self._left(writing) <= 0:
                event.finish = "length"
        if event.finish and (complaint := writing.sampler.complaint):
            event.finish, event.error = "refused", f"The grammar can't be kept to: {complaint}"
        if event.finish:
            return False
        now = time.perf_counter()
        if now - writing.emitted_at >= EMIT_SECONDS:
            self._send(writing, now)
        return True

    def _send(self, writing: Writing, now: float) -> None:
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
        resident = writing.resident
        if resident is None:
            return
        writing.resident = None
        resident.busy = False
        resident.tokens = writing.tokens[: resident.held]
        self.native.cut(resident.seq, resident.held)
        if not self.native.can_rewind or resident.held == 0:
            self.native.cut(resident.seq)
            self._residents.remove(resident)

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

    def _make_room(self, group: list[Writing]) -> None:
        """The cells are used up: forget an idle sequence, else the newest reply steps back in line."""
        if self._retire_oldest():
            return
        if len(self._writing) == 1:
            self._end(self._writing[0], "length")
            return
        newest = min(reversed(self._writing), key=lambda w: w.job.urgent)
        self._writing.remove(newest)
        self._rest(newest)
        self._retire_oldest()
        self._waiting.insert(0, newest)

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._emit(events)

    def _note_prompt(self, writing: Writing) -> None:
        resident = writing.resident
        if self._disk is not None and resident is not None and self.native.can_rewind:
            self._disk.note(writing.job.prompt, writing.job.adapters)

    def _save_one(self, *, older_than: float) -> bool:
        """Write one prefix to disk; False when there is none to be written now."""
        wanted = self._disk.wanted(older_than=older_than) if self._disk is not None else None
        if wanted is None:
            return False
        tokens, adapters = wanted
        resident, common = self._residents.best(tokens, adapters)
        if resident is not None and common == len(tokens):
            self._save(resident, tokens, adapters)
        return True

    def finish(self) -> None:
        """Write what is still to be kept on disk; call when no more steps will follow."""
        if self._disk is not None:
            self._disk.finish()
            while self._save_one(older_than=0.0):
                self._disk.finish()

    def _save(self, resident: Resident, tokens: list[int], adapters: Adapters) -> None:
        assert self._disk is not None
        while self._residents.full:
            if not self._retire_oldest(keep=resident):
                return
        copy = self._residents.add(tokens, adapters)
        self.native.share(resident.seq, copy.seq, len(tokens))
        self._disk.write(tokens, adapters, self.native.state(copy.seq))
        self.native.cut(copy.seq)
        self._residents.remove(copy)
