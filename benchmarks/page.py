"""The page of a simulation: what came out, in words, a table and the picture; one HTML file without others."""

import base64
from html import escape
from typing import Any

from elasticlm.benchmarks.plot import SMOOTHED_S
from elasticlm.benchmarks.summary import arm_budget_ms, budget_name

ON_TIME = 0.95  # share of requests within T below which an arm is shown in red

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; margin: 0;
  color: #1f2937; background: #f8fafc; }
main { max-width: 1260px; margin: 0 auto; padding: 24px 24px 64px; }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
p { max-width: 105ch; margin: 8px 0; }
.muted, dd, caption { color: #6b7280; }
.headline { display: flex; gap: 16px; flex-wrap: wrap; margin: 20px 0; }
.card { flex: 1 1 200px; max-width: 360px; padding: 14px 18px;
  background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; }
.card.best { border: 2px solid #2563eb; }
.card b { font-size: 30px; line-height: 1.2; display: block; }
.card code { font-weight: 600; }
.card.late b { color: #dc2626; }
table { border-collapse: collapse; background: #fff; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px; font-size: 15px; border-bottom: 1px solid #e5e7eb; text-align: right; white-space: nowrap; }
th { font-weight: 600; color: #6b7280; font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 12px; }
td.best { font-weight: 700; color: #1d4ed8; }
.scroll { overflow-x: auto; border: 1px solid #e5e7eb; border-radius: 10px; background: #fff; }
.scroll img { display: block; width: 100%; }
.bar { display: inline-flex; width: 90px; height: 12px; border-radius: 3px; overflow: hidden; vertical-align: middle; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; max-width: 100ch; }
dt { font-weight: 600; } dd { margin: 0; }
code { font: 14px ui-monospace, "DejaVu Sans Mono", monospace; }
"""


def page(summary: dict[str, Any], picture_png: bytes, colors: dict[str, str]) -> str:
    """Return the HTML page of a simulation; `colors` are those of the levels in the picture."""
    picture = base64.b64encode(picture_png).decode()
    count = len(summary["arms"])
    title = "A rush, served " + (f"{count} ways" if count > 1 else "under one policy")
    narrowest, widest = 150 + 250 * count, 130 + 310 * count  # px: between them the picture's letters are legible
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
<main>
<h1>{title}</h1>
<p class="muted">{_traffic(summary)}</p>
<div class="headline">{"".join(_card(arm, summary) for arm in summary["arms"])}</div>
<p>{_verdict(summary)}</p>
<h2>The rush over time</h2>
<div class="scroll"><img style="min-width: {narrowest}px; max-width: {widest}px" src="data:image/png;base64,{picture}"
alt="Users, latency, level served and quality over time, a column an arm"></div>
<p class="muted">Each dot is a request, red if it was late or failed, violet if it was refused because it could not be
answered in time any more; 95% of a second's requests stay under the
dark line; the dashed line is the latency budget T. Quality is the mean over {SMOOTHED_S} seconds: of the requests that
were answered (dashed), and with every late or failed request counted as 0 (solid).</p>
<h2>Arms and latency budgets</h2>
<div class="scroll">{_table(summary, colors)}</div>
{_leads(summary)}
<h2>What the words mean</h2>
{_glossary(summary)}
<h2>How it was measured</h2>
{_setting(summary)}
</main>
</html>
"""


def _traffic(summary: dict[str, Any]) -> str:
    load, workload = summary["load"], summary["workload"]
    archive, name, spec = (f"<code>{escape(workload[field])}</code>" for field in ("archive", "name", "data"))
    asked = f"{archive}, workload {name} on {spec}, split {escape(workload['split'])}."
    if load["arrivals"]:
        arrivals = f"<code>{escape(load['arrivals'])}</code>"
        return f"{asked} Open loop: arrivals {arrivals} for {load['duration_s']:g} s, the same for every arm."
    ramp_s, pauses = load["users"] / load["spawn_rate"], "{:g} to {:g} s".format(*load["pause_s"])
    pressure = " and ".join(
        f"{load['offered_rps'] / rps:.2g} times what level {level} can bear"
        for level, rps in load["capacity_rps"].items()
    )
    return (
        f"{asked} {load['users']} users come within {ramp_s:.0f} s and stay to the end at {load['duration_s']:g} s; "
        f"each sends, waits for the answer and pauses {pauses}: up to {load['offered_rps']:.0f} requests a second"
        f"{', ' if pressure else ''}{pressure}. Every arm sees the same users, queries and pauses."
    )


def _card(arm: str, summary: dict[str, Any]) -> str:
    budget_ms = arm_budget_ms(arm, summary)
    judged = summary["arms"][arm]["budgets"].get(budget_name(budget_ms))
    if judged is None:
        return ""
    kind = "best" if arm == _best(summary) else "late" if judged["within_budget"] < ON_TIME else ""
    return f"""<div class="card {kind}"><code>{escape(arm)}</code><b>{judged["within_budget"]:.1%}</b>
answered within {budget_ms:g} ms<br>effective quality {judged["effective_quality"]:.3f}</div>"""


def _tightest(summary: dict[str, Any]) -> str:
    figures = next(iter(summary["arms"].values()))
    return min(figures["budgets"], key=float)


def _best(summary: dict[str, Any]) -> str:
    budget = _tightest(summary)
    return max(summary["arms"], key=lambda arm: summary["arms"][arm]["budgets"][budget]["effective_quality"])


def _verdict(summary: dict[str, Any]) -> str:
    """Say in a sentence which arm served its users best at the tightest budget, and what the static arms lost."""
    budget, best = _tightest(summary), _best(summary)

    def said(arm: str) -> str:
        judged = summary["arms"][arm]["budgets"][budget]
        return f"{judged['within_budget']:.1%} in time, effective quality {judged['effective_quality']:.3f}"

    if len(summary["arms"]) == 1:
        return f"At T = {budget} ms <code>{escape(best)}</code>: {said(best)}."
    others = "; ".join(f"<code>{escape(arm)}</code> {said(arm)}" for arm in summary["arms"] if arm != best)
    return (
        f"At T = {budget} ms <code>{escape(best)}</code> gave its users the most: {said(best)}. The others: {others}."
    )


def _table(summary: dict[str, Any], colors: dict[str, str]) -> str:
    arms = summary["arms"]
    columns = [
        (budget, figure, form)
        for budget in sorted(next(iter(arms.values()))["budgets"], key=float)
        for figure, form in (("within_budget", ".1%"), ("effective_quality", ".3f"))
    ]
    best = {(b, f): max(figures["budgets"][b][f] for figures in arms.values()) for b, f, _ in columns}
    lines = []
    for arm, figures in arms.items():
        cells = [f"<td><code>{escape(arm)}</code></td>"]
        for budget, figure, form in columns:
            value = figures["budgets"][budget][figure]
            mark = ' class="best"' if value == best[budget, figure] else ""
            cells.append(f"<td{mark}>{value:{form}}</td>")
        cells.append(f"<td>{_or_dash(figures['quality'], '.3f')}</td>")
        cells += [f"<td>{_or_dash(figures[name], ',.0f')}</td>" for name in ("p50_ms", "p95_ms", "p99_ms")]
        cells += [f"<td>{figures[name]:,}</td>" for name in ("requests", "failures")]
        cells.append(f"<td>{_shares(figures, colors)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = ["arm", *(f"{'in time' if f == 'within_budget' else 'effective'}<br>T = {b} ms" for b, f, _ in columns)]
    head += [escape(summary["measure"]), "p50<br>ms", "p95<br>ms", "p99<br>ms", "requests", "failed", "levels served"]
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(lines)}</table>"


def _leads(summary: dict[str, Any]) -> str:
    """A line a budget: by how much the arm that works towards it is ahead of the others."""
    lines = []
    for budget, found in summary["lead"].items():
        over = (
            f"<code>{escape(arm)}</code> by {{:+.3f}} ({{:+.3f}} to {{:+.3f}})".format(*other["difference"])
            for arm, other in found["over"].items()
        )
        if found["over"]:
            ahead = f"<code>{escape(found['arm'])}</code> is ahead of {'; '.join(over)}"
            lines.append(f"<p>In effective quality at T = {budget} ms {ahead}.</p>")
    if not lines:
        return ""
    how = "Over the questions that both were asked, with 95% intervals (paired bootstrap over questions)."
    return "".join(lines) + f'<p class="muted">{how}</p>'


def _shares(figures: dict[str, Any], colors: dict[str, str]) -> str:
    shares = figures["level_shares"]
    bars = [f'<i style="width:{share:.2%};background:{colors[level]}"></i>' for level, share in shares.items()]
    title = ", ".join(f"level {level}: {share:.1%}" for level, share in shares.items())
    return f'<span class="bar" title="{title}">{"".join(bars)}</span>'


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _glossary(summary: dict[str, Any]) -> str:
    return _definitions({
        "deadline:t=T": "before each batch the handler takes the largest level at which every request in hand and in "
        "the queue that can still be answered within T is answered within T; the others are refused (504)",
        "slack:t=T,alpha=A": "the largest level that answers all who wait within the share A of the latency budget T, "
        "and makes no request in the batch late",
        "queue:t=T": "the paper's law: the largest level with (g + 1) times its service time within T, where g wait",
        "fixed:K": "level K alone, as a model of that size would be served; K is the percentage of parameters kept",
        "in time": "share of all requests sent that were answered with 200 within T",
        summary["measure"]: "mean quality of the answered requests, computed from what the server returned",
        "effective": "effective quality: the same over all requests sent, where a late or failed one counts as 0",
        "failed": "no answer until the end of the run, or a status other than 200",
    })  # fmt: skip


def _setting(summary: dict[str, Any]) -> str:
    machine, load, workload = summary["machine"], summary["load"], summary["workload"]
    shares = ", ".join(f"{share:.0%}" for share in summary["client_cpu"].values())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}",
        "versions": f"Python {machine['python']}, {versions}",
        "server": "TorchServe on loopback, started anew for each arm; driver, server and model share the machine",
        "driver": f"Locust; of one core it took {shares}",
        "answers": f"{workload['answers']} for {workload['different_requests']:,} different requests, judged after the "
        f"run; seed {load['seed']}",
    }
    if load["capacity_rps"]:
        rates = ", ".join(f"level {level} {rps:.1f}" for level, rps in load["capacity_rps"].items())
        facts["capacity"] = f"in requests a second, measured through the server before the run: {rates}"
    files = "Beside this page: trace.csv (a row a request), summary.json, requests.jsonl."
    return f"{_definitions(facts)}<p class='muted'>{files}</p>"


def _definitions(meanings: dict[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in meanings.items()) + "</dl>"
    )
