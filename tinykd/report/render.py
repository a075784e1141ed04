"""Turns the records of a run into one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import tinykd
from tinykd.report.charts import Series, arena_chart, confusion_chart, line_chart, png_data_uri
from tinykd.report.collect import STAGES, BoardRecords, Layer, RunRecords, StageState
from tinykd.report.graph_svg import graph_svg
from tinykd.report.graph_table import rows as graph_rows

_FOLDER = Path(__file__).parent
_MAX_MATRIX_CLASSES = 30
_TOP_FUNCTIONS = 10
_TITLES = {
    "train": "Train",
    "export": "Export",
    "plan": "Plan",
    "build": "Build",
    "bench": "Bench",
}


@dataclass(frozen=True)
class Bar:
    """A quantity against its limit, in bytes; None where it is not known. `note` says where the value is from."""

    label: str
    used_bytes: int | None
    budget_bytes: int | None
    note: str

    @property
    def share(self) -> float | None:
        """Used over budget; None when either is unknown."""
        if self.used_bytes is None or not self.budget_bytes:
            return None
        return self.used_bytes / self.budget_bytes


@dataclass(frozen=True)
class Fact:
    """A number, what it is, and which record says so."""

    label: str
    value: str
    note: str = ""
    source: str = ""


def render_page(records: RunRecords) -> str:
    """Return the page of a run as HTML text. The same records give the same text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        thousands=thousands,
        percent=percent,
        size=size,
        seconds=seconds,
        shape=shape,
        millions=millions,
        short_source=short_source,
    )
    return environment.get_template("page.html.j2").render(
        run=records,
        target=records.model if records.third_party else records.folder,
        version=tinykd.__version__,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        headline=headline(records),
        training=training_facts(records),
        curves=learning_curves(records),
        recipe=_recipe_text(records),
        boards=[board_view(records, item) for item in records.boards],
        model_steps=_model_steps(records),
        drawing=graph_svg(records.graph, graph_rows(records.graph), records.name) if records.graph else None,
        provenance=provenance(records),
    )


# Numbers for people. None is always "not run" or a dash: a missing number is never drawn as zero.


def thousands(value: float | None) -> str:
    """Return 71680 as '71,680'; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 2) -> str:
    """Return 0.9843 as '98.43 %'; a dash for None."""
    return "–" if value is None else f"{value * 100:.{digits}f} %"


def size(num_bytes: float | None) -> str:
    """Return bytes as kB or MB of 1024, with one decimal; a dash for None."""
    if num_bytes is None:
        return "–"
    if num_bytes < 1024:
        return f"{num_bytes:,.0f} B"
    return f"{num_bytes / 1024:,.1f} kB" if num_bytes < 10 * 1024**2 else f"{num_bytes / 1024**2:,.1f} MB"


def seconds(value: float | None) -> str:
    """Return a duration as '2 min 05 s', '3.2 s' or '40 ms'; '' for None."""
    if value is None:
        return ""
    if value >= 3600:
        return f"{value // 3600:.0f} h {value % 3600 // 60:02.0f} min"
    if value >= 60:
        return f"{value // 60:.0f} min {value % 60:02.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def shape(value: tuple[int, ...]) -> str:
    """Return (1, 28, 28, 4) as '28×28×4': the batch is always 1."""
    return "×".join(map(str, value[1:] or value))


def millions(value: float | None) -> str:
    """Return a count as '12.50 M' or '830 k'; a dash for None."""
    if value is None:
        return "–"
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def short_source(source: str, limit: int = 40) -> str:
    """Return the end of a layer's name: converters join the names of all that they fused with semicolons."""
    first = source.partition(";")[0]
    return first if len(first) <= limit else f"…{first[1 - limit :]}"


def headline(records: RunRecords) -> list[Fact]:
    """Return the model's numbers for the top of the page, each only when a record has it."""
    train, export = records.train.results, records.export.results
    facts = []
    if (value := train.get("top1_float")) is not None:
        facts.append(Fact("float accuracy", percent(value), _samples(train.get("num_test")), "train"))
    if (value := export.get("top1_int8")) is not None:
        facts.append(Fact("int8 on the host", percent(value), _samples(export.get("samples")), "export"))
    for board in records.boards:
        if (value := board.bench.results.get("top1")) is not None:
            where = board.name if _on_silicon(board) else f"{board.name}, emulated"
            note = f"{where}; {_samples(board.bench.results.get('samples'))}"
            facts.append(Fact("int8 on the device", percent(value), note, "bench"))
    if (value := train.get("teacher_top1")) is not None:
        facts.append(Fact("teacher's accuracy", percent(value), str(train.get("teacher_model") or ""), "train"))
    macs = train.get("macs") or next((b.plan.results.get("macs") for b in records.boards if b.plan.results), None)
    if train.get("params") is not None:
        smaller = _times_smaller(train)
        facts.append(Fact("parameters", thousands(train["params"]), smaller, "train"))
    if macs is not None:
        facts.append(Fact("MACs per inference", millions(macs), "", "train" if train.get("macs") else "plan"))
    if records.third_party and records.model is not None:
        facts.append(Fact("model file", size(records.model.stat().st_size), records.model.name, "model"))
        for board in records.boards:
            if (value := board.plan.results.get("arena_bytes")) is not None:
                facts.append(Fact("arena", size(value), f"on {board.name}", "plan"))
    return facts


def _times_smaller(train: dict[str, Any]) -> str:
    if not train.get("teacher_params") or not train.get("params"):
        return ""
    return f"{train['teacher_params'] / train['params']:.1f}× fewer than the teacher"


def _samples(count: int | None) -> str:
    return f"on {count:,} test images" if count is not None else ""


def _on_silicon(board: BoardRecords) -> bool:
    return board.bench.results.get("transport") == "serial"


def training_facts(records: RunRecords) -> list[Fact]:
    """Return what was trained, in a few lines; the whole recipe stands below them."""
    results = records.train.results
    config = records.train.manifest.config if records.train.manifest else {}
    if not results:
        return []
    counts = [f"{results[f'num_{part}']:,} {part}" for part in ("train", "val", "test") if results.get(f"num_{part}")]
    facts = [
        Fact("data", str(results.get("dataset", "")), " · ".join(counts)),
        Fact("student", _model(config.get("student")), f"{thousands(results.get('params'))} parameters"),
    ]
    if config.get("teacher") and results.get("teacher_top1") is not None:
        origin = results.get("teacher_source")
        note = "trained here" if origin == "trained" else f"weights: {origin}"
        facts.append(
            Fact("teacher", _model(config["teacher"]), f"{thousands(results.get('teacher_params'))} parameters, {note}")
        )
    for loss in config.get("distill") or []:
        args = ", ".join(f"{key} {value}" for key, value in (loss.get("args") or {}).items())
        facts.append(
            Fact("distillation", str(loss["method"]), f"weight {loss.get('weight')}" + (f", {args}" if args else ""))
        )
    train = config.get("train") or {}
    if train:
        facts.append(
            Fact(
                "training",
                f"{train.get('epochs')} epochs",
                f"{train.get('optimizer')}, lr {train.get('lr')}, batch {train.get('batch_size')}, "
                f"label weight {train.get('label_weight')}",
            )
        )
    facts += _beside_the_student(results, config)
    facts.append(Fact("machine", str(results.get("device", "")), seconds(results.get("seconds"))))
    if cost := results.get("cost"):
        overhead = cost.get("augmented_overhead")
        teacher = percent(cost["teacher_share"], 0)
        notes = [f"teacher {teacher} of a step", f"{cost['peak_memory_mib']:,.0f} MiB at most"]
        notes += [f"NetAug makes a step {overhead:.1f} times as long"] if overhead else []
        facts.append(Fact("speed", f"{results.get('steps_per_s')} steps/s", " · ".join(notes)))
    return facts


def _beside_the_student(results: dict[str, Any], config: dict[str, Any]) -> list[Fact]:
    """Return the stages before the task, what surrounds the student in training, and networks that came of it."""
    facts = []
    if before := (results.get("stages") or [])[:-1]:
        facts.append(
            Fact("stages before", ", ".join(f"{stage['name']} ({stage['epochs']} epochs)" for stage in before))
        )
    if netaug := config.get("netaug"):
        widths = ", ".join(f"{factor:g}" for factor in netaug["width"] or [])
        shown = f"widths × {widths}" if widths else "the family's widths"
        facts.append(Fact("NetAug", shown, "the student inside wider networks while it trained"))
    if (value := results.get("top1_fake_quant")) is not None:
        facts.append(Fact("int8 in the loop", percent(value), f"{(config.get('qat') or {}).get('epochs')} epochs"))
    for name, value in (results.get("methods") or {}).items():
        values = value if isinstance(value, list) else [value]
        if "top1" in name and "threshold" not in name and all(isinstance(item, float) for item in values):
            facts.append(Fact(name.replace("_", " "), ", ".join(percent(item) for item in values), "test accuracy"))
    return facts


def _model(section: dict[str, Any] | None) -> str:
    if not section:
        return ""
    args = ", ".join(f"{key} {value}" for key, value in (section.get("args") or {}).items())
    return f"{section.get('model')}" + (f" ({args})" if args else "")


def learning_curves(records: RunRecords) -> list[tuple[str, Markup]]:
    """Return (title, chart) of the losses and of the validation accuracy; none without metrics."""

    def points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and "epoch" in row]

    pairs = [("teacher", records.teacher_metrics), ("student", records.student_metrics)]
    losses = [Series(f"{who} loss", points(rows, "loss"), who) for who, rows in pairs]
    accuracies = [Series(f"{who} accuracy", points(rows, "top1_val"), who) for who, rows in pairs]
    reached = [value for line in accuracies for _, value in line.points]
    # The first epochs of a training say little: the axis starts where most of the curve lies.
    floor = max(0.0, min(1.0, sorted(reached)[len(reached) // 10])) if reached else 0.0
    floor = min(floor, 0.95) - 0.02 if floor > 0.5 else 0.0
    upper = [Series(line.label, [(x, y) for x, y in line.points if y >= floor], line.css_class) for line in accuracies]
    charts = [
        (
            "Training loss",
            line_chart(losses, x_label="epoch", y_format=lambda value: f"{value:.3g}", title="Training loss by epoch"),
        ),
        (
            "Validation accuracy",
            line_chart(
                upper,
                x_label="epoch",
                y_format=lambda value: f"{value * 100:.3g} %",
                title="Validation accuracy by epoch",
                y_range=(floor, max(reached)) if reached else None,
            ),
        ),
    ]
    return [(title, chart) for title, chart in charts if chart]


def _recipe_text(records: RunRecords) -> str:
    if records.train.manifest is None or not records.train.manifest.config:
        return ""
    return yaml.safe_dump(records.train.manifest.config, sort_keys=False, width=88)


def _model_steps(records: RunRecords) -> list[dict[str, Any]]:
    """Return the steps that no board is part of; without any board, the rest of the road as not run."""
    stages = [records.train, records.export]
    if not records.boards:
        stages += [StageState(name, "not run", records.folder) for name in STAGES if name not in ("train", "export")]
    return [_step(records, stage) for stage in stages]


def _step(records: RunRecords, stage: StageState) -> dict[str, Any]:
    status = stage.status
    if records.third_party and stage.name in ("train", "export") and status == "not run":
        status = "not ours"
    return {
        "title": _TITLES[stage.name],
        "status": status,
        "css": status.replace(" ", "-"),
        "seconds": stage.seconds,
        "note": _step_note(stage),
    }


def _step_note(stage: StageState) -> str:
    results = stage.results
    if stage.name == "train" and results:
        return f"{results.get('student_model', '')}, {percent(results.get('top1_float'))}"
    if stage.name == "export" and results:
        return f"int8 {percent(results.get('top1_int8'))}"
    if stage.name == "plan" and results:
        return f"arena {size(results.get('arena_bytes'))}"
    if stage.name == "build" and results:
        return f"flash {size(results.get('flash_bytes'))}"
    if stage.name == "bench" and results:
        fact = latency(results)
        return f"{fact.value} {fact.source}" if fact else f"{thousands(results.get('samples'))} samples"
    return ""


def board_view(records: RunRecords, item: BoardRecords) -> dict[str, Any]:
    """Return everything that the page shows about one board."""
    plan, build, bench = item.plan.results, item.build.results, item.bench.results
    layers = item.layers
    total = sum(layer.cost or 0 for layer in layers) or None
    most = max((layer.cost or 0 for layer in layers), default=0)
    most_macs = max((layer.macs for layer in layers), default=0)
    return {
        "name": item.name,
        "board": item.board,
        "steps": [_step(records, stage) for stage in (item.plan, item.build, item.bench)],
        "plan": plan,
        "build": build,
        "bench": bench,
        "bars": budget_bars(item),
        "latency": latency(bench),
        "parity": parity(bench),
        "arena": arena_chart(item.memory_plan, [_op_label(layer) for layer in layers])
        if item.memory_plan and layers
        else None,
        "memory_plan": item.memory_plan,
        "peak": layers[item.memory_plan.peak_op] if item.memory_plan and layers else None,
        "layers": [
            {
                "layer": layer,
                "share": layer.cost / total if total and layer.cost is not None else None,
                "bar": layer.cost / most if most and layer.cost is not None else None,
                "macs_bar": layer.macs / most_macs if most_macs else 0,
            }
            for layer in layers
        ],
        "functions": top_functions(bench),
        "goals": plan.get("goals") or [],
        "measured": total is not None,
        "estimated": any(layer.estimated_cycles is not None for layer in layers),
        "total_macs": sum(layer.macs for layer in layers),
        "total_cost": total,
        "cost_unit": "cycles" if any(layer.cycles is not None for layer in layers) else "instructions",
        "cost": bench.get("instructions_per_inference") or bench.get("cycles_per_inference"),
        "arena_as_planned": build["arena_bytes"] == plan["arena_bytes"]
        if "arena_bytes" in build and "arena_bytes" in plan
        else None,
        "confusion": _confusion_view(records, item),
        "wrong": [
            {
                "uri": png_data_uri(image.pixels),
                "label": _class(records, image.label),
                "predicted": _class(records, image.predicted),
            }
            for image in item.wrong
        ],
        "num_wrong": int(item.confusion.sum() - item.confusion.trace()) if item.confusion is not None else None,
    }


def top_functions(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the functions that took the most instructions with their shares, and one row for all others."""
    rows = bench.get("by_function") or []
    total = sum(row["instructions"] for row in rows)
    shown = [dict(row) for row in rows[:_TOP_FUNCTIONS]]
    if rest := rows[_TOP_FUNCTIONS:]:
        others = f"{len(rest)} others"
        shown.append({"function": others, "instructions": sum(row["instructions"] for row in rest)})
    most = max((row["instructions"] for row in shown), default=0)
    return [
        {
            "name": row["function"],
            "instructions": row["instructions"],
            "share": row["instructions"] / total,
            "bar": row["instructions"] / most,
            "cycles": row.get("estimated_cycles"),
        }
        for row in shown
    ]


def _op_label(layer: Layer) -> str:
    return f"{layer.kind} {layer.source}"


def _class(records: RunRecords, index: int) -> str:
    classes = records.classes
    return classes[index] if 0 <= index < len(classes) else str(index)


def _confusion_view(records: RunRecords, item: BoardRecords) -> dict[str, Any] | None:
    counts = item.confusion
    if counts is None:
        return None
    pairs = [
        (int(counts[row, column]), _class(records, row), _class(records, column))
        for row in range(len(counts))
        for column in range(len(counts))
        if row != column and counts[row, column]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    chart = confusion_chart(counts, records.classes) if len(counts) <= _MAX_MATRIX_CLASSES else None
    return {"chart": chart, "pairs": pairs[:12]}


def budget_bars(item: BoardRecords) -> list[Bar]:
    """Return SRAM and flash against the board's budget: as built where it was built, else as planned."""
    plan, build = item.plan.results, item.build.results
    board = item.board
    sram, flash = build.get("sram_total_bytes"), build.get("flash_bytes")
    if sram is None and {"sram_static_bytes", "stack_bytes_max"} <= build.keys():
        sram = build["sram_static_bytes"] + build["stack_bytes_max"]
    sram_parts = _parts(build, {"arena": "arena_bytes", "stack at most": "stack_bytes_max"}, sram, "other static data")
    flash_parts = _parts(build, {"model": "model_bytes", "code": "code_bytes"}, flash, "other constants")
    planned = "planned, not built yet"
    return [
        Bar(
            "SRAM",
            plan.get("sram_total_bytes") if sram is None else sram,
            plan.get("sram_budget_bytes", board.sram_budget_bytes if board else None),
            planned if sram is None else f"in the ELF: {sram_parts}",
        ),
        Bar(
            "Flash",
            plan.get("flash_total_bytes") if flash is None else flash,
            plan.get("flash_budget_bytes", board.flash_budget_bytes if board else None),
            planned if flash is None else f"in the ELF: {flash_parts}",
        ),
    ]


def _parts(build: dict[str, Any], parts: dict[str, str], total: int | None, rest: str) -> str:
    """Return 'arena 4,704 B, stack at most 712 B, other static data 1,300 B'; a rest of 0 is left out."""
    known = {label: build[key] for label, key in parts.items() if build.get(key) is not None}
    remaining = (total or 0) - sum(known.values())
    if remaining > 0:
        known[rest] = remaining
    return ", ".join(f"{label} {thousands(value)} B" for label, value in known.items())


def latency(bench: dict[str, Any]) -> Fact | None:
    """Return the latency with its kind; None when it was not measured. An estimate is always called one."""
    value = bench.get("latency_us")
    if value is None:
        return None
    kind = str(bench.get("latency_kind", "unknown"))
    text = f"{value / 1000:,.2f} ms" if value >= 1000 else f"{value:,.0f} µs"
    if kind == "estimated":
        note = f"estimated from {thousands(bench.get('instructions_per_inference'))} exact instructions"
        if bench.get("estimated_cycles") is not None:
            note += f", {thousands(bench['estimated_cycles'])} cycles"
        if bench.get("cycles_low") is not None:
            note += f" (from {thousands(bench['cycles_low'])} to {thousands(bench['cycles_high'])})"
    else:
        note = "counted by the core's cycle counter" if kind == "measured" else kind
    return Fact("latency", text, note, kind)


def parity(bench: dict[str, Any]) -> Fact | None:
    """Return whether the device's outputs equal the host's; None when that was not looked at."""
    equal, samples = bench.get("outputs_equal"), bench.get("samples")
    if equal is None or samples is None:
        return None
    if equal:
        host = {"tflite-micro": "TFLite Micro's", "numpy-reference": "the NumPy reference's"}
        note = f"device outputs equal {host.get(str(bench.get('host')), 'those')} on the host, bit for bit"
        return Fact("bit-exact", f"{samples:,} of {samples:,}", note, "ok")
    different = bench.get("samples_different")
    value = f"{different:,} of {samples:,} differ" if different is not None else "some differ"
    return Fact("not bit-exact", value, "tinykd verify shows the first layer that differs from TFLite Micro", "bad")


# Which numbers of the page come from which stage's record.
_NUMBERS = {
    "train": "float accuracy, teacher's accuracy, parameters, learning curves, recipe",
    "export": "int8 accuracy on the host, the model file",
    "plan": "arena, lower bound, peak, budgets, planned SRAM and flash, what each goal would take",
    "build": "SRAM and flash in the ELF, stack",
    "bench": "accuracy and outputs of the device, instructions, cycles, latency, confusion matrix, wrong images",
}


def provenance(records: RunRecords) -> list[dict[str, Any]]:
    """Return, for each stage that was run, which record its numbers come from and what made it."""
    rows = []
    staged = [("", records.train), ("", records.export)]
    staged += [(item.name, stage) for item in records.boards for stage in (item.plan, item.build, item.bench)]
    for board, stage in staged:
        if stage.manifest is None:
            continue
        folder = stage.folder
        if folder.is_relative_to(records.folder):
            folder = folder.relative_to(records.folder)
        rows.append(
            {
                "numbers": _NUMBERS[stage.name],
                "stage": f"{stage.name} ({board})" if board else stage.name,
                "record": f"{folder.as_posix()}/manifest.json",
                "seed": stage.manifest.seed,
                "tools": sorted(stage.manifest.tools.items()),
                "inputs": sorted(stage.manifest.inputs.items()),
                "outputs": sorted(stage.manifest.outputs.items()),
            }
        )
    return rows
