"""What goes into one decode: a row for each reply that is written, guesses behind it, and chunks of prompts.

A row is one token of one sequence. Replies come first, since nobody's text may stand still; what the step
has left over (`cost_model`) goes to the prompts that still have to be read, urgent ones first.
"""

from __future__ import annotations

from typing import NamedTuple

from serve.engine.cost_model import CostModel
from serve.engine.llama import FLASH_TILE, LlamaContext
from serve.engine.prompt_lookup import LONGEST
from serve.engine.sequence import Sequence


class SequenceError(Exception):
    """Something went wrong that concerns one sequence only."""

    def __init__(self, sequence: Sequence, cause: Exception) -> None:
        super().__init__(sequence, cause)
        self.sequence = sequence
        self.cause = cause


class SequenceRows(NamedTuple):
    """The rows of one sequence in the batch."""

    sequence: Sequence
    first_row: int
    num_rows: int


class Batch(NamedTuple):
    """What was written into the context's arrays for one decode."""

    parts: list[SequenceRows]
    num_decode_rows: int
    """Rows of replies that are written, their guesses included; they come first."""
    num_prefill_rows: int
    """Rows of prompts that are read."""

    @property
    def num_rows(self) -> int:
        """All rows."""
        return self.num_decode_rows + self.num_prefill_rows


class BatchBuilder:
    """Fills the batch of one context."""

    def __init__(self, llama: LlamaContext, cost_model: CostModel, *, drafting: bool) -> None:
        self._llama = llama
        self._cost_model = cost_model
        self._drafting = drafting

    def fill_batch(self, sequences: list[Sequence]) -> Batch:
        """Write the rows of the next decode; `sequences` have the same adapters."""
        parts: list[SequenceRows] = []
        writers = [s for s in sequences if s.num_uncomputed_tokens == 1]
        if writers and self._drafting:
            self._choose_drafts(writers)
        row = 0
        for sequence in writers:
            count = self._add_decode_rows(sequence, row)
            parts.append(SequenceRows(sequence, row, count))
            row += count
        num_decode_rows = row
        readers = [s for s in sequences if s.num_uncomputed_tokens > 1]
        if readers:
            readers.sort(key=lambda s: not s.request.urgent)
            chunk = self._cost_model.prefill_chunk_size(len(writers))
            end = row + min(chunk, self._llama.n_batch - row)
            for sequence in readers:
                count = _prefill_count(sequence.num_uncomputed_tokens, end - row)
                if count <= 0:
                    break
                self._add_prefill_rows(sequence, row, count)
                parts.append(SequenceRows(sequence, row, count))
                row += count
        return Batch(parts, num_decode_rows, row - num_decode_rows)

    def _choose_drafts(self, writers: list[Sequence]) -> None:
        """Let guesses follow the last tokens of replies where that pays."""
        drafts = [_propose_draft(s) for s in writers]
        if any(drafts) and self._llama.n_batch >= (1 + LONGEST) * len(writers):
            chances = [s.draft_chances(d) for s, d in zip(writers, drafts, strict=True)]
            lengths = self._cost_model.draft_lengths(len(writers), chances)
        else:
            lengths = [0] * len(writers)
        for sequence, draft, length in zip(writers, drafts, lengths, strict=True):
            sequence.draft_tokens = draft[:length]

    def _add_decode_rows(self, sequence: Sequence, row: int) -> int:
        """The last token of a reply, which is not computed yet, and its guesses; each wants its logits."""
        llama, slot = self._llama, sequence.slot
        assert slot is not None
        if not sequence.draft_tokens:  # as in most steps: single numbers are quicker than slices
            llama.token[row] = sequence.tokens[-1]
            llama.pos[row] = slot.num_cells
            llama.seq[row] = slot.seq
            llama.wants_logits[row] = 1
            return 1
        # rows [row, end) are token t and its guesses g at positions p, p + 1, ...:
        #   token  t  g1   g2   ...   the logits at a row choose what stands in the next one,
        #   pos    p  p+1  p+2  ...   so a guess is right when the row before chooses it
        count = 1 + len(sequence.draft_tokens)
        end = row + count
        llama.token[row:end] = [sequence.tokens[-1], *sequence.draft_tokens]
        llama.pos[row:end] = range(slot.num_cells, slot.num_cells + count)
        llama.seq[row:end] = slot.seq
        llama.wants_logits[row:end] = 1
        return count

    def _add_prefill_rows(self, sequence: Sequence, row: int, count: int) -> None:
        """The next `count` tokens of a prompt; only the last of the whole prompt wants its logits."""
        llama, slot = self._llama, sequence.slot
        assert slot is not None
        # tokens [held, held + count) of the prompt -> rows [row, end); what was held is in the cells
        held, end = slot.num_cells, row + count
        llama.token[row:end] = sequence.tokens[held : held + count]
        llama.pos[row:end] = range(held, held + count)
        llama.seq[row:end] = slot.seq
        llama.wants_logits[row:end] = 0
        if held + count == len(sequence.tokens):
            llama.wants_logits[end - 1] = 1


def _propose_draft(sequence: Sequence) -> list[int]:
    try:
        return sequence.propose_draft(min(LONGEST, sequence.num_tokens_left - 1))
    except Exception as error:
        raise SequenceError(sequence, error) from error


def _prefill_count(uncomputed: int, room: int) -> int:
    """How many tokens of a prompt go into `room` rows.

    No rest shorter than a tile is left where a tile can be spared: it would be rounded otherwise.

    >>> [_prefill_count(uncomputed, 512) for uncomputed in (100, 512, 530, 600)]
    [100, 512, 448, 512]
    """
    count = min(uncomputed, room)
    if count >= 2 * FLASH_TILE and 0 < uncomputed - count < FLASH_TILE:
        count -= FLASH_TILE
    return count
