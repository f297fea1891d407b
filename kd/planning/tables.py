"""A plan for a person: small tables and a few sentences."""

import textwrap
from collections.abc import Mapping

from kd.planning.plan import SHARDS_PER_ACTOR, BatchPlan, Plan, SplitPlan
from kd.reporting.tables import MISSING, Table, as_text, percent

BAR = 40
"""Characters of a histogram's longest bar."""


def to_text(plan: Plan) -> str:
    """The whole plan, at most 100 columns wide."""
    tables = [
        corpus_table(plan.splits),
        length_table(plan.splits),
        stage_table(plan),
        price_table(plan),
        here_table(plan),
        output_table(plan),
    ]
    parts = [f"{table.title}\n\n{as_text(table)}" for table in tables if table.rows]
    parts += ["Measured here\n\n" + "\n".join(_probed(plan)), "Suggested\n\n" + "\n".join(_suggested(plan))]
    return "\n\n".join([*parts, "\n".join(textwrap.fill(note, 100) for note in plan.notes)]) + "\n"


def corpus_table(splits: Mapping[str, SplitPlan]) -> Table:
    """Rows and lengths of every split."""
    lines = [
        (
            name,
            f"{split.rows:,}",
            split.counted,
            f"{split.explained:,}",
            f"{split.mean_input_tokens:,.0f}",
            f"{split.median_input_tokens:,.0f}",
            f"{split.longest_input_tokens:,}",
            percent(split.truncated_frac),
            f"{split.bad + sum(split.faults.values()):,} of {split.sampled:,}",
        )
        for name, split in splits.items()
    ]
    columns = ("split", "rows", "from", "explained", "mean", "median", "longest", "cut %", "errors in sample")
    reader = "teacher" if any(split.explained for split in splits.values()) else "student"
    note = f"explained: rows that `attribute` takes. cut %: rows that lose tokens to {reader}.max_input_tokens."
    return Table(f"Rows, and input tokens of the {reader}", columns, lines, notes=[note], left=frozenset({"split", "from"}))


def length_table(splits: Mapping[str, SplitPlan]) -> Table:
    """The histogram of the split of which most rows are explained."""
    name, split = max(splits.items(), key=lambda item: item[1].explained)
    counts = [count for _, count in split.histogram]
    width = split.histogram[1][0] if len(split.histogram) > 1 else 1
    lines = [
        (f"{start:,} to {start + width - 1:,}", percent(count / sum(counts)), "#" * round(BAR * count / max(counts)))
        for start, count in split.histogram
        if start + width > min(length for length, found in split.histogram if found)
    ]
    return Table(f"Input tokens per row, {name}", ("tokens", "rows %", ""), lines, left=frozenset({""}))


def stage_table(plan: Plan) -> Table:
    """What every stage computes, and what must fit into memory."""
    lines = [
        (
            title,
            f"{stage.rows:,}",
            _figure(stage.flops / max(1, stage.rows) / 1e9),
            _figure(stage.flops / 1e12),
            _figure(stage.memory_gib),
        )
        for title, stage in plan.stages.items()
    ]
    notes = [
        "Rows: each as often as a model takes it: in every epoch, for every student, and evaluated by every model.",
        "Memory: weights, in training with gradients and optimizer before ZeRO; activations on top.",
    ]
    columns = ("stage", "rows", "GFLOP/row", "TFLOP", "memory GiB")
    return Table("Stages that need a model", columns, lines, notes=notes, left=frozenset({"stage"}))


def price_table(plan: Plan) -> Table:
    """GPU-hours by stage and type of GPU, and their price, in the best case and in the worst."""
    titles = list(plan.stages)
    lines = [
        (
            gpu.type if case == "best" else "",
            case,
            *(_figure(gpu.hours[title][place]) for title in titles),
            _figure(gpu.nodes[place]),
            _figure(gpu.total_hours[place]),
            "<0.01" if 0 < gpu.usd[place] < 0.01 else f"{gpu.usd[place]:,.2f}",
            f"{gpu.to_attribute_in_an_hour[place]:,}" if gpu.to_attribute_in_an_hour[place] else MISSING,
        )
        for gpu in plan.gpus
        for place, case in enumerate(("best", "worst"))
    ]
    notes = [f"Does not fit on one {gpu.type}: {', '.join(gpu.too_small)}." for gpu in plan.gpus if gpu.too_small]
    notes = ["nodes: GPUs that start, or wait until they are given back. in 1 h: GPUs that attribute within an hour.", *notes]
    columns = ("GPU", "case", *titles, "nodes", "in all", "USD", "in 1 h")
    return Table("GPU-hours", columns, lines, notes=notes, left=frozenset({"GPU", "case"}))


def here_table(plan: Plan) -> Table:
    """What the run takes on this machine."""
    if plan.here is None:
        return Table("The run on this machine", (), ())
    parts = {**plan.here.seconds, "in all": plan.here.total}
    lines = [(title, *(_time(value, max(span)) for value in span)) for title, span in parts.items()]
    notes = ["By what was measured below; starts of processes are assumed, and a quarter more or less."]
    return Table("The run on this machine", ("stage", "from", "to"), lines, notes=notes, left=frozenset({"stage"}))


def output_table(plan: Plan) -> Table:
    """What the run directory will hold."""
    sizes = {**plan.output_bytes, "in all": sum(plan.output_bytes.values())}
    lines = [(folder, f"{size / 2**20:,.1f}") for folder, size in sizes.items()]
    return Table("Output in the run directory", ("folder", "MiB"), lines, left=frozenset({"folder"}))


def _figure(value: float) -> str:
    """Three digits; a whole number where that has more, and no exponent."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _probed(plan: Plan) -> list[str]:
    if plan.probe is None or plan.attribution is None:
        return ["nothing (no teacher)" if plan.batches is None else "nothing (--no-probe)"]
    probe, time = plan.probe, plan.attribution
    those = f"{probe.at_once} actor{'s' * (probe.at_once > 1)} at once on {probe.device}, torch threads {probe.threads}"
    such = f"{time.actors} such actor{'s' * (time.actors > 1)}"
    assumed = "what this machine is good for" if time.local else "cluster.max_actors, on machines like this one"
    return [
        f"probe         {those}, loaded in {probe.load_s:,.1f} s",
        f"              each {probe.rows:,} rows: {probe.rows_per_s:,.1f} rows/s, {probe.tokens_per_s:,.0f} tokens/s",
        f"attribution   {_time(time.seconds)} by {such}: {assumed}",
    ]


def _suggested(plan: Plan) -> list[str]:
    size = "" if plan.probe is None else ", a minute of work each at most"
    return [
        *(_workers(plan) if plan.batches else []),
        f"shards        prepare.rows_per_shard: {plan.rows_per_shard}",
        f"              ({SHARDS_PER_ACTOR} or more for each of cluster.max_actors{size})",
        *(_batches(plan.batches) if plan.batches else []),
    ]


def _workers(plan: Plan) -> list[str]:
    """What attributes within an hour; without a probe it stands in the table of GPU-hours."""
    time = plan.attribution
    if time is None:
        return ["actors        the last column of GPU-hours says how many GPUs attribute within an hour"]
    where = ", in a cluster of machines like this one" if time.local and time.actors_for_an_hour > time.actors else ""
    return [f"actors        cluster.max_actors: {time.actors_for_an_hour} attributes within an hour{where}"]


def _batches(batches: BatchPlan) -> list[str]:
    """The budget of tokens, and what it is based on."""
    if batches.rows_per_s:
        tried = ", ".join(f"{rate:,.1f} with {budget}" for budget, rate in batches.rows_per_s.items())
        basis = f"rows/s, the better of two tries: {tried}"
    else:
        basis = "by the rows' lengths, not by memory or speed"
    return [
        f"batches       attribution.batch_tokens: {batches.batch_tokens} gives {batches.rows:,.0f} rows and"
        f" {batches.padding_frac:.1%} padding",
        f"              ({basis})",
    ]


def _time(seconds: float, largest: float | None = None) -> str:
    """Seconds in the unit that suits them, or the largest number beside them."""
    by = largest or seconds
    return f"{seconds:,.0f} s" if by < 600 else f"{seconds / 60:,.0f} min" if by < 36_000 else f"{seconds / 3600:,.1f} h"
