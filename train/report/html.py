"""`report.html`: what was asked, what happened, what came of it, on one page that needs nothing else.

Written from the files of the run folder alone, so it can be written again at any time. What the model said is
data: everything is escaped.
"""

from __future__ import annotations

import math
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rig.atomic import write_text
from rig.paths import shell_word
from rig.runs import Run
from train.eval import scoring
from train.monitor import log
from train.monitor.progress import format_duration
from train.report.svg import Series, render_chart

FILE = "report.html"
SIDE_BY_SIDE = 8
"""Held-out problems shown before and after."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c1917;--dim:#78716c;--paper:#fafaf9;--panel:#fff;--line:#e7e5e4;
--good:#047857;--bad:#b91c1c;--warn:#b45309}
@media(prefers-color-scheme:dark){:root{--ink:#e7e5e4;--dim:#a8a29e;--paper:#1c1917;--panel:#292524;
--line:#44403c;--good:#34d399;--bad:#f87171;--warn:#fbbf24}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1020px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin-top:20px}
.tile,figure{background:var(--panel);border:1px solid var(--line);border-radius:10px;margin:0}
.tile,figure{padding:14px 16px}
.tile b{display:block;font-size:24px;line-height:1.25}.tile span{color:var(--dim);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(360px,1fr));gap:14px}
figcaption{font-weight:600;font-size:14px}svg{width:100%;height:auto;display:block}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}.grid{stroke:var(--line)}
.mark{stroke:var(--warn);stroke-dasharray:3 3}.tick{fill:var(--dim);font-size:10px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--dim)}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.legend b{color:var(--ink)}
table{border-collapse:collapse;width:100%;background:var(--panel);table-layout:fixed}
th,td{border:1px solid var(--line);padding:8px 10px;text-align:left;vertical-align:top}
th{font-size:13px;color:var(--dim);font-weight:600}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,monospace}
.alarm{border-left:3px solid var(--warn);padding:6px 12px;margin:8px 0;background:var(--panel)}
details{background:var(--panel);border:1px solid var(--line);border-radius:10px;margin-top:12px}
details{padding:10px 16px}
summary{cursor:pointer;font-weight:600}
"""


def write_report(run: Run) -> Path:
    """Write the page from the run folder and return its path."""
    rows = log.read_step_rows(run.path / log.LOG)
    everything = list(log.read_rows(run.path / log.LOG))
    alarms = [row for row in everything if "alarm" in row]
    looks = [row for row in everything if "held_out" in row]
    body = "".join(
        (
            _head(run, rows),
            _figures(run),
            _alarms(run, alarms),
            _charts(rows, alarms, looks),
            _replies(run),
            _samples(run),
            _details(run),
        )
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.path.name)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    path = run.path / FILE
    write_text(path, page)
    return path


def _head(run: Run, rows: list[dict[str, Any]]) -> str:
    record = run.record
    steps = rows[-1]["step"] if rows else 0
    parts = [
        f"{escape(run.base_model)} on {escape(str(record.get('card', '?')))}",
        f"backend {escape(str(record.get('backend', '?')))}",
        f"{steps} steps",
        f"{int(record.get('trainable_parameters') or 0):,} parameters learnt",
    ]
    if seconds := record.get("seconds"):
        parts.append(f"{format_duration(float(seconds))} of training")
    if energy := record.get("energy"):
        parts.append(escape(str(energy)))
    head = f"<h1>{escape(run.path.name)}</h1><div class=dim>{' · '.join(parts)}</div>"
    if run.state in ("planned", "training"):
        how = f"rig train --resume {shell_word(run.path)}"
        head += f"<p>Not finished. Go on with: <code>{escape(how)}</code></p>"
    return head


def _figures(run: Run) -> str:
    judged = run.record.get("eval", {})
    before, after = judged.get("before"), judged.get("after")
    if not after:
        return ""
    tiles = []
    for measure, words in scoring.MEASURES.items():
        new = after[measure]
        low, high = new["interval"]
        was = f"from {before[measure]['share']:.1%} · " if before else ""
        tiles.append(
            f"<div class=tile><span>{words}</span><b>{new['share']:.1%}</b>"
            f"<span>{was}95%: {low:.1%} to {high:.1%}</span></div>"
        )
    tiles.append(
        f"<div class=tile><span>held-out problems</span><b>{after['n']}</b>"
        f"<span>greedy, never trained on</span></div>"
    )
    return f"<div class=tiles>{''.join(tiles)}</div>{_test(run)}"


def _test(run: Run) -> str:
    change = run.record.get("change")
    if not change:
        return ""
    strict = change["strict"]
    p = "p &lt; 0.001" if strict["p"] < 0.001 else f"p = {strict['p']:.2g}"
    low, high = strict["interval"]
    return (
        f"<p class=dim>On the same problems {strict['gained']} were gained and {strict['lost']} lost: "
        f"{strict['difference']:+.1%} (95%: {low:+.1%} to {high:+.1%}, exact paired test {p}).</p>"
    )


def _alarms(run: Run, alarms: list[dict[str, Any]]) -> str:
    said = [f"<div class=alarm>Step {a['step']}: {escape(a['sentence'])}</div>" for a in alarms]
    if early := run.record.get("early"):
        said.append(f"<div class=alarm>{escape(str(early))}</div>")
    return f"<h2>Alarms</h2>{''.join(said)}" if said else ""


def _charts(
    rows: list[dict[str, Any]], alarms: list[dict[str, Any]], looks: list[dict[str, Any]]
) -> str:
    def line(key: str, name: str) -> Series:
        points = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float)]
        return Series(name, [(x, y) for x, y in points if math.isfinite(y)])

    marks = [(alarm["step"], alarm["sentence"]) for alarm in alarms]
    named = sorted({k for r in rows for k in r if k.startswith("rewards/") and k.endswith("/mean")})
    held_out = Series(
        "held-out, strict",
        [(row["step"], row["held_out"]["strict"]["share"]) for row in looks],
    )
    drawn = (
        render_chart("Reward", [line("reward", "all, weighted")], marks=marks),
        render_chart("Each reward, mean", [line(key, key[8:-5]) for key in named], low=0),
        render_chart(
            "Right and in form",
            [line("accuracy", "accuracy"), line("format", "format"), held_out],
            percent=True,
            low=0,
            high=1,
        ),
        render_chart(
            "Wasted",
            [
                line("frac_reward_zero_std", "groups without signal"),
                line("completions/clipped_ratio", "completions cut off"),
            ],
            percent=True,
            low=0,
            high=1,
        ),
        render_chart(
            "Length of completions, tokens",
            [line("completions/mean_length", "mean"), line("completions/max_length", "longest")],
            low=0,
        ),
        render_chart("Entropy, nats a token", [line("entropy", "entropy")], low=0),
        render_chart("Gradient norm", [line("grad_norm", "before clipping")], low=0),
        render_chart("Seconds a step", [line("step_time", "step")], low=0),
        render_chart("Memory reserved, GiB", [line("memory_gib", "peak so far")], low=0),
    )
    return f"<h2>Training</h2><div class=charts>{''.join(drawn)}</div>" if rows else ""


def _replies(run: Run) -> str:
    kept = {}
    for label in ("before", "after"):
        path = run.path / "eval" / f"{label}.jsonl"
        kept[label] = scoring.read_rows(path)[:SIDE_BY_SIDE] if path.is_file() else []
    extras = run.record.get("extras", {})
    if not kept["after"]:
        return ""
    rows = []
    for old, new in zip_longest(kept["before"], kept["after"]):
        one = new or old
        rows.append(
            f"<tr><td>{escape(one.question)}<br><span class=dim>Gold: {escape(one.gold)}</span></td>"
            f"<td>{_reply(old)}</td><td>{_reply(new)}</td></tr>"
        )
    for question in extras.get("after", {}):
        cells = (extras.get(label, {}).get(question, "") for label in ("before", "after"))
        said = "".join(f"<td><pre>{escape(text)}</pre></td>" for text in cells)
        rows.append(
            f"<tr><td>{escape(question)}<br><span class=dim>Asked besides, not counted</span></td>"
            f"{said}</tr>"
        )
    return (
        "<h2>The same held-out problems, before and after</h2><table><tr>"
        f"<th style=width:28%>question<th>before<th>after</tr>{''.join(rows)}</table>"
    )


def _reply(one: scoring.ScoredCompletion | None) -> str:
    if one is None:
        return ""
    verdict, kind = ("right", "good") if one.lenient else ("wrong", "bad")
    if one.lenient and not one.strict:
        verdict = "right, form not kept"
    return f"<pre>{escape(one.text.strip())}</pre><span class={kind}>{verdict}</span>"


def _samples(run: Run) -> str:
    """The best and the worst completion at the start, in the middle and at the end."""
    samples = list(log.read_rows(run.path / log.SAMPLES))
    steps = sorted({sample["step"] for sample in samples})
    if not steps:
        return ""
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    rows = []
    for sample in samples:
        if sample["step"] in chosen:
            given = sample["rewards"].items()
            marks = ", ".join(f"{escape(name)} {float(mark):.2g}" for name, mark in given)
            rows.append(
                f"<tr><td>{sample['step']}</td><td><pre>{escape(_question(sample['prompt']))}</pre></td>"
                f"<td><pre>{escape(sample['completion'].strip())}</pre></td>"
                f"<td>{float(sample['reward']):.2f}<br><span class=dim>{marks}</span></td></tr>"
            )
    return (
        "<h2>Completions while training, the best and the worst of a step</h2>"
        "<table><tr><th style=width:6%>step<th style=width:40%>prompt<th>completion"
        f"<th style=width:16%>reward</tr>{''.join(rows)}</table>"
    )


def _question(prompt: str) -> str:
    """The end of the prompt: its system part is the same for all."""
    return prompt if len(prompt) <= 400 else "..." + prompt[-397:]


def _details(run: Run) -> str:
    recipe = (run.path / "recipe.toml").read_text("utf-8")
    settings = "\n".join(f"{k} = {v}" for k, v in sorted(run.record.get("settings", {}).items()))
    versions = ", ".join(f"{k} {v}" for k, v in run.record.get("versions", {}).items())
    return (
        f"<h2>How it was made</h2><p class=dim>rig {escape(str(run.record.get('rig', '')))}, "
        f"{escape(versions)}, seed {run.record.get('seed')}</p>"
        f"<details><summary>Recipe as resolved</summary><pre>{escape(recipe)}</pre></details>"
        f"<details><summary>Every field of the trainer</summary><pre>{escape(settings)}</pre></details>"
    )
