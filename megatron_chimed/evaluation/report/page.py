"""The page of a report: style, the switch of languages, and its sections."""

import html
import json
from collections.abc import Mapping, Sequence

from megatron_chimed.evaluation.figures import Figure, MeasuredItem
from megatron_chimed.evaluation.report.charts import Bar, interval_chart, radar_chart
from megatron_chimed.evaluation.report.wording import both
from megatron_chimed.evaluation.results import Items, MeasureResult, ModelResult

SHOWN_ANSWERS = 3
SHOWN_CHARACTERS = 1200
FEWEST_AXES = 3

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d8dee6;--back:#fff;
--card:#f6f8fa;--c0:#1f6feb;--c1:#d1482b;--c2:#1a7f37;--c3:#8250df;--c4:#b07800;--c5:#0a7ea4}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa7b5;--line:#313b47;--back:#0f1419;
--card:#171d24;--c0:#58a6ff;--c1:#ff7b5a;--c2:#56d364;--c3:#bc8cff;--c4:#e3b341;--c5:#39c5e0}}
body{margin:0 auto;max-width:960px;padding:24px 20px 60px;background:var(--back);color:var(--ink);
font:15px/1.55 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
h1{font-size:26px}h2{font-size:19px;margin:36px 0 8px;border-top:1px solid var(--line);
padding-top:20px}h3{font-size:15px;margin:18px 0 4px}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px 4px 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:top}th{color:var(--soft);font-weight:600}td.n{text-align:right}
.note{color:var(--soft);font-size:13px}.scroll{overflow-x:auto}
details{margin:8px 0;padding:6px 12px;background:var(--card);border-radius:6px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0 10px;font:13px/1.45 ui-monospace,
"Noto Sans Mono CJK SC",monospace}
.chart{width:100%;height:auto;display:block;margin:8px 0}.chart text{fill:var(--ink);font-size:12px}
.chart .label{text-anchor:end}.chart .tick{text-anchor:middle;fill:var(--soft)}
.grid{stroke:var(--line)}.base{stroke:var(--soft);stroke-dasharray:4 4}
.ring{fill:none;stroke:var(--line)}.whisker{stroke-width:3;opacity:.55}
.m0{fill:var(--c0);stroke:var(--c0)}.m1{fill:var(--c1);stroke:var(--c1)}
.m2{fill:var(--c2);stroke:var(--c2)}.m3{fill:var(--c3);stroke:var(--c3)}
.m4{fill:var(--c4);stroke:var(--c4)}.m5{fill:var(--c5);stroke:var(--c5)}
.area{fill-opacity:.08;stroke-width:2}
.key{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:6px}
#language{float:right;font:inherit;color:inherit;background:var(--card);
border:1px solid var(--line);border-radius:6px;padding:4px 12px;cursor:pointer}
body.english .zh,body.chinese .en{display:none}
"""
SCRIPT = """
const page=document.body,button=document.getElementById("language");
function show(name){page.className=name;
document.documentElement.lang=name==="chinese"?"zh":"en";
button.textContent=name==="chinese"?"English":"中文"}
button.onclick=()=>show(page.className==="chinese"?"english":"chinese");
show(location.hash==="#zh"||(location.hash!=="#en"&&navigator.language.startsWith("zh"))
?"chinese":"english");
"""


def render_page(
    results: Sequence[MeasureResult], items: Items, sources: Mapping[str, str], more: str = ""
) -> str:
    """The whole report as HTML.

    Args:
        results: From `summarize`.
        items: From `run_measures`.
        sources: Where each model came from, by name.
        more: HTML of further sections.
    """
    models = list(sources)
    body = [
        f'<button id="language"></button><h1>{both("Evaluation")}</h1>',
        _models(sources),
        _overview(results, models),
    ]
    body += [_section(result, items, models) for result in results]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Evaluation</title><style>{STYLE}</style></head>"
        f'<body class="english">{"".join(body)}{more}<script>{SCRIPT}</script></body></html>\n'
    )


def _models(sources: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><td><span class="key" style="background:var(--c{number % 6})"></span>'
        f"{html.escape(name)}</td><td>{html.escape(source)}</td></tr>"
        for number, (name, source) in enumerate(sources.items())
    )
    head = f"<tr><th>{both('model')}</th><th>{both('source')}</th></tr>"
    return f"<table>{head}{rows}</table>"


def _overview(results: Sequence[MeasureResult], models: Sequence[str]) -> str:
    note = (
        "Items are the sample: intervals say how far a value would move with other items of the "
        "same kind, not with other prompts or seeds."
    )
    head = "".join(f"<th>{html.escape(model)}</th>" for model in models)
    rows, axes, values = [], [], []
    for result in results:
        mains = [_main(model) for model in result.models]
        cells = "".join(f"<td>{cell(figure)}</td>" for figure in mains)
        metric = next((figure.metric for figure in mains if figure is not None), "none")
        rows.append(f"<tr><td>{html.escape(result.title)}</td><td>{both(metric)}</td>{cells}</tr>")
        if all(figure is None or _is_share(figure) for figure in mains):
            axes.append(result.name)
            values.append([None if figure is None else figure.value for figure in mains])
    chart = ""
    if len(axes) >= FEWEST_AXES:
        chart = radar_chart(axes, [list(of_model) for of_model in zip(*values, strict=True)])
        if len(axes) < len(results):
            chart += f'<p class="note">{both("Only measures from 0 to 1 are drawn.")}</p>'
    return (
        f'<h2>{both("Overview")}</h2><div class="scroll"><table><tr><th>{both("measure")}</th>'
        f"<th>{both('metric')}</th>{head}</tr>{''.join(rows)}</table></div>{chart}"
        f'<p class="note">{both(note)}</p>'
    )


def _section(result: MeasureResult, items: Items, models: Sequence[str]) -> str:
    parts = [f"<h2>{html.escape(result.title)}</h2>", _chart(result, models)]
    whole = [figure for figure in result.models[0].figures if not figure.group]
    parts.append(_table(result, [figure.metric for figure in whole]))
    grouped = sorted({figure.group for figure in result.models[0].figures if figure.group})
    if grouped:
        summary = f"<summary>{both('by group')} ({len(grouped)})</summary>"
        parts.append(f"<details>{summary}{_group_table(result)}</details>")
    parts += [_comparisons(result), _dropped(result), _answers(result, items)]
    return "".join(parts)


def _main(model: ModelResult) -> Figure | None:
    return model.figures[0] if model.figures else None


def _is_share(figure: Figure) -> bool:
    values = [figure.value]
    if figure.interval is not None:
        values += [figure.interval.low, figure.interval.high]
    return all(value is not None and 0 <= value <= 1 for value in values)


def _chart(result: MeasureResult, models: Sequence[str]) -> str:
    bars = []
    for model in result.models:
        figure = _main(model)
        if figure is None or figure.value is None or not _is_share(figure):
            continue
        interval = figure.interval
        bars.append(
            Bar(
                label=model.model,
                value=figure.value,
                low=None if interval is None else interval.low,
                high=None if interval is None else interval.high,
                colour=models.index(model.model),
            )
        )
    if not bars:
        return ""
    metric = next(model.figures[0].metric for model in result.models if model.figures)
    baselines = [
        (figure.metric, figure.value)
        for figure in result.baselines
        if figure.value is not None and figure.metric.startswith(metric)
    ]
    note = "Points are values, lines their 95 % intervals; dashed: answers without knowledge."
    return f'{interval_chart(bars, baselines)}<p class="note">{both(note)}</p>'


def _table(result: MeasureResult, metrics: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(model.model)}</th>" for model in result.models)
    rows = []
    for metric in metrics:
        cells = "".join(f"<td>{cell(_find(model, metric))}</td>" for model in result.models)
        rows.append(f"<tr><td>{both(metric)}</td>{cells}</tr>")
    for figure in result.baselines:
        cells = f"<td>{_number(figure.value)}</td>" * len(result.models)
        rows.append(f'<tr class="note"><td>{both(figure.metric)}</td>{cells}</tr>')
    return (
        f'<div class="scroll"><table><tr><th>{both("metric")}</th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _group_table(result: MeasureResult) -> str:
    head = "".join(f"<th>{html.escape(model.model)}</th>" for model in result.models)
    keys = [(f.metric, f.group) for f in result.models[0].figures if f.group]
    rows = []
    for metric, group in keys:
        found = [_find(model, metric, group) for model in result.models]
        cells = "".join(f"<td>{cell(figure)}</td>" for figure in found)
        count = next((f.num_used for f in found if f is not None), 0)
        rows.append(
            f"<tr><td>{html.escape(group)}</td><td>{both(metric)}</td>"
            f'{cells}<td class="n">{count:,}</td></tr>'
        )
    return (
        f'<div class="scroll"><table><tr><th>{both("group")}</th><th>{both("metric")}</th>{head}'
        f"<th>{both('items')}</th></tr>{''.join(rows)}</table></div>"
    )


def _find(model: ModelResult, metric: str, group: str = "") -> Figure | None:
    same = (f for f in model.figures if f.metric == metric and f.group == group)
    return next(same, None)


def _comparisons(result: MeasureResult) -> str:
    if not result.comparisons:
        return ""
    rows = []
    for entry in result.comparisons:
        found = entry.comparison
        rows.append(
            f"<tr><td>{html.escape(entry.first)} − {html.escape(entry.second)}</td>"
            f"<td>{found.difference:+.4f} ({found.low:+.4f} – {found.high:+.4f})</td>"
            f'<td>{found.p_value:.4f}</td><td>{found.test}</td><td class="n">'
            f"{found.num_items:,}</td></tr>"
        )
    heads = ("model", "difference", "p-value", "test", "items")
    head = "".join(f"<th>{both(word)}</th>" for word in heads)
    return (
        f"<h3>{both('Differences between models')}</h3>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _dropped(result: MeasureResult) -> str:
    rows = [
        f"<tr><td>{html.escape(model.model)}</td><td>{html.escape(reason)}</td>"
        f'<td class="n">{count:,} / {result.num_total:,}</td></tr>'
        for model in result.models
        for reason, count in model.dropped.items()
    ]
    if not rows:
        text = both("all items were evaluated")
        return f'<p class="note">{text} ({result.num_total:,})</p>'
    head = "".join(f"<th>{both(word)}</th>" for word in ("model", "reason", "items"))
    return (
        f"<h3>{both('Not evaluated')}</h3><div class='scroll'><table><tr>{head}</tr>"
        f"{''.join(rows)}</table></div>"
    )


def _answers(result: MeasureResult, items: Items) -> str:
    """Answers with the highest and the lowest main score, of measures that have answers."""
    blocks = []
    for model in result.models:
        answered = [item for item in items[model.model][result.name] if _text(item) is not None]
        if not answered or not result.main_score:
            continue
        ranked = sorted(answered, key=lambda item: -item.scores.get(result.main_score, 0.0))
        shown = [("highest", item) for item in ranked[:SHOWN_ANSWERS]]
        rest = ranked[SHOWN_ANSWERS:]
        shown += [("lowest", item) for item in rest[-SHOWN_ANSWERS:]]
        blocks.append(f"<h3>{html.escape(model.model)}</h3>")
        blocks += [_answer(word, item) for word, item in shown]
    if not blocks:
        return ""
    summary = f"<summary>{both('Highest and lowest answers')}</summary>"
    return f"<details>{summary}{''.join(blocks)}</details>"


def _answer(word: str, item: MeasuredItem) -> str:
    scores = json.dumps(dict(item.scores), ensure_ascii=False)
    return (
        f"<p>{both(word)}: {html.escape(item.id)}, {both('scores')} {html.escape(scores)}</p>"
        f'<div class="note">{both("prompt")}</div><pre>{_clipped(item.prompt)}</pre>'
        f'<div class="note">{both("answer")}</div><pre>{_clipped(_text(item) or "")}</pre>'
    )


def _text(item: MeasuredItem) -> str | None:
    response = item.response
    text = response.get("text") if isinstance(response, dict) else None
    return text if isinstance(text, str) else None


def _clipped(text: str) -> str:
    """The end of a text, where a prompt has its question."""
    shown = text if len(text) <= SHOWN_CHARACTERS else f"…{text[-SHOWN_CHARACTERS:]}"
    return html.escape(shown)


def cell(figure: Figure | None) -> str:
    """A value with its interval, as HTML."""
    if figure is None or figure.value is None:
        return both("none")
    note = f'<div class="note">{both(figure.note)}</div>' if figure.note else ""
    if figure.interval is None:
        return f"{_number(figure.value)}{note}"
    low, high = _number(figure.interval.low), _number(figure.interval.high)
    return f'{_number(figure.value)} <span class="note">({low} – {high})</span>{note}'


def _number(value: float | None) -> str:
    if value is None:
        return both("none")
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
