"""The held-out problems inside a run: judged before, after, and now and then, leaving no trace in it.

Whoever looks must not change what is looked at: random states, mode and gradients are as they were. What is
kept on disk is what `rig eval` keeps, so both can be compared.
"""

from __future__ import annotations

from typing import Any

from rig.atomic import atomic_folder
from rig.runs import Run
from train.eval import scoring
from train.eval.models import LocalModel
from train.eval.problems import Problems
from train.model.preserve_state import preserve_state
from train.monitor import log
from train.trainer import checkpoints

BEST = "best"
"""The adapter of the best look, under checkpoints/."""


class HeldOutEval:
    """The problems of one run, put to its model as it is at the moment.

    Args:
        run: its folder takes the rows and figures.
        problems: what is asked, and how.
        model, tokenizer: as they are trained.
        base: what the recipe calls the model.
        batch: problems generated together.
        patience: looks without a better accuracy after which to stop (0 = never).
        done: steps before this process began, whose looks count towards early stopping.
    """

    def __init__(
        self,
        run: Run,
        problems: Problems,
        model: Any,
        tokenizer: Any,
        *,
        base: str,
        batch: int,
        patience: int = 0,
        done: int = 0,
    ) -> None:
        self.problems = problems
        self._run, self._base = run, base
        self._model, self._tokenizer = model, tokenizer
        self._batch, self._patience = batch, patience
        self._best, self._since_best = -1.0, 0
        for row in log.read_rows(run.path / log.LOG):
            if "held_out" in row and row["step"] <= done:
                self._count(float(row["held_out"]["strict"]["share"]))

    def evaluate_label(self, label: str) -> dict[str, Any]:
        """Judge all problems and keep rows and figures under `label`, as `rig eval` does."""
        with preserve_state(self._model):
            local = self._local()
            verdict = self._verdict(local)
            besides = scoring.ask_extra_questions(
                local, self.problems.reply_format, self.problems.sampling
            )
        scoring.save_result(
            self._run,
            label,
            verdict,
            model=self._base,
            problems=self.problems.to_record(),
        )
        self._run.update_record(extras={label: {one.question: one.text for one in besides}})
        return verdict.figures

    def compare_before_after(self) -> dict[str, Any] | None:
        """From `before` to `after`: what was gained and lost, with the paired test."""
        paths = [self._run.path / "eval" / f"{label}.jsonl" for label in ("before", "after")]
        if not all(path.is_file() for path in paths):
            return None
        return scoring.compare_scores(*map(scoring.read_rows, paths))

    def evaluate_step(self, step: int) -> tuple[dict[str, Any], str | None]:
        """Judge in mid-run; the second value says why to stop, once patience has run out."""
        with preserve_state(self._model):
            figures = self._verdict(self._local()).figures
        share = float(figures["strict"]["share"])
        if self._count(share):
            self._keep_best()
        kept = {key: figures[key] for key in ("n", "strict", "lenient", "format")}
        if self._patience and self._since_best >= self._patience:
            return kept, (
                f"Held-out accuracy has not risen above {self._best:.1%} in {self._patience} looks: "
                f"stopping early at step {step}; the adapter of the best look is kept."
            )
        return kept, None

    def best_adapter(self) -> Any:
        """The folder of the best look's adapter, where early stopping is on; else None."""
        path = self._run.checkpoint_folder / BEST
        return path if self._patience and path.is_dir() else None

    def _count(self, share: float) -> bool:
        """Whether this look is the best so far."""
        if share > self._best:
            self._best, self._since_best = share, 0
            return True
        self._since_best += 1
        return False

    def _keep_best(self) -> None:
        if not self._patience:
            return
        folder = self._run.checkpoint_folder
        with atomic_folder(folder, BEST, when_full=checkpoints.WHEN_FULL) as workshop:
            self._model.save_pretrained(str(workshop / BEST))

    def _local(self) -> LocalModel:
        return LocalModel(self._model, self._tokenizer, self._batch)

    def _verdict(self, local: LocalModel) -> scoring.EvalResult:
        return scoring.score_model(
            local, self.problems.rows, self.problems.reply_format, self.problems.sampling
        )
