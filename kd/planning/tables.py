"""A plan for a person: small tables and a few sentences."""

from collections.abc import Mapping

from kd.planning.plan import Plan, SplitPlan
from kd.reporting.tables import MISSING, Table, as_text, percent

BAR = 40
"""Characters of a histogram's longest bar."""


def to_text(plan: Plan) -> str:
    """The whole plan, at most 100 columns wide."""
    tables = [corpus_table(plan.splits), length_table(plan.splits), stage_table(plan), price_table(plan), output_table(plan)]
    parts = [f"{table.title}\n\n{as_text(table)}" for table in tables if table.rows]
    return "\n\n".join([*parts, "\n".join([*_probed(plan), *_suggested(plan), "", *plan.notes]).strip()]) + "\n"


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
    columns = ("split", "rows", "from", "explained", "tokens", "median", "longest", "cut %", "errors in sample")
    return Table("Rows, and input tokens of the teacher", columns, lines, left=frozenset({"split", "from"}))


def length_table(splits: Mapping[str, SplitPlan]) -> Table:
    """The histogram of the split of which most rows are explained."""
    name, split = max(splits.items(), key=lambda item: item[1].explained)
    counts = [count for _, count in split.histogram]
    width = split.histogram[1][0] if len(split.histogram) > 1 else 1
    lines = [
        (f"{start:,} to {start + width - 1:,}", percent(count / sum(counts)), "#" * round(BAR * count / max(counts)))
        for start, count in split.histogram
    ]
    return Table(f"Input tokens per row, {name}", ("tokens", "rows %", ""), lines, left=frozenset({""}))


def stage_table(plan: Plan) -> Table:
    """What every stage computes, and what must fit into memory."""
    lines = [
        (
            title,
            f"{stage.rows:,}",
            f"{stage.flops / max(1, stage.rows) / 1e9:,.3g}",
            f"{stage.flops / 1e15:,.3g}",
            f"{stage.memory_gib:,.2f}",
        )
        for title, stage in plan.stages.items()
    ]
    note = "Memory: weights, in training with gradients and optimizer before ZeRO; activations on top."
    return Table("Stages", ("stage", "rows", "GFLOP/row", "PFLOP", "memory GiB"), lines, notes=[note], left=frozenset({"stage"}))


def price_table(plan: Plan) -> Table:
    """GPU-hours by stage and type of GPU, and their price."""
    titles = list(plan.stages)
    lines = [
        (
            gpu.type,
            *(_hours(gpu.hours[title]) for title in titles),
            _hours(gpu.total_hours),
            f"{gpu.usd:,.2f}",
            f"{gpu.to_attribute_in_an_hour:,}",
        )
        for gpu in plan.gpus
    ]
    notes = [f"Does not fit on one {gpu.type}: {', '.join(gpu.too_small)}." for gpu in plan.gpus if gpu.too_small]
    columns = ("GPU", *titles, "hours in all", "USD", "GPUs to attribute in 1 h")
    return Table(f"GPU-hours at {plan.share_of_peak:.0%} of the peak", columns, lines, notes=notes, left=frozenset({"GPU"}))


def output_table(plan: Plan) -> Table:
    """What the run directory will hold."""
    sizes = {**plan.output_bytes, "in all": sum(plan.output_bytes.values())}
    lines = [(folder, f"{size / 2**20:,.1f}") for folder, size in sizes.items()]
    return Table("Output", ("folder", "MiB"), lines, left=frozenset({"folder"}))


def _probed(plan: Plan) -> list[str]:
    if plan.probe is None or plan.attribution is None:
        return ["attribution   not measured (--no-probe)"]
    probe, time = plan.probe, plan.attribution
    actors = f"{probe.at_once} actor{'s' * (probe.at_once > 1)} at once on {probe.device}, threads {probe.threads}"
    return [
        f"probe         {probe.rows:,} rows, {actors}: {probe.rows_per_s:,.1f} rows/s and {probe.tokens_per_s:,.0f} tokens/s"
        f" each, loaded in {probe.load_s:,.1f} s",
        f"attribution   {_time(time.seconds)} with {time.actors} such actors",
        f"actors        cluster.max_actors: {time.actors_for_an_hour} attributes within an hour",
    ]


def _suggested(plan: Plan) -> list[str]:
    batches = plan.batches
    padding = MISSING if batches.padding_frac is None else f"{batches.padding_frac:.1%}"
    return [
        f"shards        prepare.rows_per_shard: {plan.rows_per_shard}",
        f"batches       attribution.batch_tokens: {batches.batch_tokens} gives {batches.rows:,.0f} rows and {padding} padding",
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.3g}" if hours < 10 else f"{hours:,.0f}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"
    )
