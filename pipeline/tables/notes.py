"""What stands around a table: others' printed numbers, the paper's curves, what peeking adds, and sentences."""

import itertools
from collections import Counter

from pipeline.statistics.verdicts import LEVEL
from pipeline.tables.columns import RANKED_BY, heading
from pipeline.tables.model import Block, Line, texts
from pipeline.tables.published import Published, PublishedTable, Repeated
from pipeline.tables.rows import NO_GPU, PEEKING, Cell, Row, gpus_of, is_extra, rules_of
from pipeline.tables.spreads import Pools
from pipeline.tables.verdicts import JUDGED, RULE, judged

MOST_PAIRS = 5
"""The number of pairs of rows that a sentence names."""

REHEARSAL = "REHEARSAL: these runs did not search among the published images. Their numbers mean nothing."


def warnings(rows: list[Row]) -> list[str]:
    """A warning and the images that were searched, if they are not those of the printed numbers."""
    foreign = sorted({row.foreign for row in rows if row.foreign})
    return [REHEARSAL, *foreign] if foreign else []


def made_on(rows: list[Row]) -> list[str]:
    """A sentence that names the GPUs of a table's runs; none if no GPU was used."""
    counts = Counter(gpu for row in rows for gpus in row.gpus.values() for gpu in gpus)
    if not counts.keys() - {NO_GPU}:
        return []
    return [f"Made on: {'; '.join(f'{gpu} ({count} runs)' for gpu, count in sorted(counts.items()))}."]


def mixtures(rows: list[Row]) -> list[str]:
    """Warnings of rows whose runs, and of datasets whose rows, were made on more than one GPU by its model, driver and
    cuDNN. Keys do not tell these apart, and their last bits may differ."""
    mixed = [row.key for row in rows if len(gpus_of([row])) > 1]
    found = [f"Runs of one row were made on different GPUs: {', '.join(mixed)}."] if mixed else []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        of_dataset = [row for row in rows if row.dataset == dataset]
        gpus = gpus_of(of_dataset)
        if len(gpus) > 1 and len(of_dataset) > 1:
            found.append(
                f"The rows of {dataset} were made on different GPUs ({'; '.join(gpus)}), so differences between them "
                "may come from the GPU."
            )
    return found


def _plain(name: str) -> str:
    """A network's name without differences of spelling: ResNet-50 and resnet50 become the same."""
    return "".join(character for character in name.lower() if character.isalnum())


def others(table: PublishedTable, datasets: list[str], notes: list[str]) -> list[Block]:
    """The printed numbers of other methods, a block for each dataset. `notes` stand below the last block."""
    blocks = []
    for dataset in datasets:
        rows = [row for row in table.references if dataset in row.numbers]
        if rows:
            metrics = list(dict.fromkeys(metric for row in rows for metric in row.numbers[dataset]))
            printed = [
                [row.method, row.network, *(_printed(row.numbers[dataset].get(metric)) for metric in metrics)]
                for row in rows
            ]
            head = ["method", "network", *map(heading, metrics)]
            title = f"Other methods on {dataset}, as printed; not run here"
            blocks.append(Block(title, head, texts(*printed)))
    if blocks:
        blocks[-1].notes.extend(notes)
    return blocks


def _printed(value: float | Repeated | None) -> str:
    if isinstance(value, Repeated):
        return f"{value.mean:.1f} (spread {value.spread}, {value.runs} runs)"
    return "–" if value is None else f"{value:.1f}"


def others_with_our_networks(published: Published, datasets: list[str], rows: list[Row]) -> list[Block]:
    """The printed numbers of other methods that have a network of the rows, with their sources."""
    networks = {_plain(run.run.recipe.backbone) for row in rows for run in row.runs}
    blocks = []
    for table in published.tables.values():
        same = [row for row in table.references if _plain(row.network) in networks]
        source = f"Theirs: {table.title}; {table.source} ({table.kind})."
        blocks += others(table.model_copy(update={"references": same}), datasets, [source, *table.notes])
    return blocks


def curves(rows: list[Row], table: PublishedTable) -> list[Block]:
    """The paper's Recall@1 by epoch and ours beside it, as means over the runs that were evaluated at that epoch, and
    the curves that it shows of other methods."""
    blocks = []
    for row in rows:
        if printed := table.curves.get(row.key):
            others = {of.method: of.curves[row.dataset] for of in table.references if row.dataset in of.curves}
            lines = []
            for epoch, value in printed.items():
                ours = Cell([run[int(epoch)] for run in row.histories if int(epoch) in run], [], row.planned)
                beside = [_printed(curve.get(epoch)) for curve in others.values()]
                lines.append([epoch, f"{value:.1f}", ours.text(none="–"), *beside])
            title = f"Recall@1 on the test set by epoch, {row.key}"
            head = ["epoch", "published", "ours", *(f"{method}, published" for method in others)]
            blocks.append(Block(title, head, texts(*lines)))
    return blocks


def peeking(rows: list[Row]) -> Block | None:
    """What choosing the epoch on the test set adds, for the rows with enough seeds to tell it from chance. None if
    there is no such row."""
    told = [row for row in rows if len(row.peeking("last_epoch").values) > 1 and not is_extra(row)]
    lines = [
        Line(texts([row.key, *(row.peeking(rule).text("+", "–") for rule in PEEKING.values())])[0].entries, row)
        for row in told
    ]
    title = "Peeking: what choosing the epoch on the test set adds, in points, paired by seed"
    return Block(title, ["Recall@1, best test epoch", "less last epoch", "less held-out"], lines) if lines else None


def numbers_mean(rows: list[Row], pools: Pools) -> str:
    """A sentence that says what a number of the table is."""
    planned = sorted({row.planned for row in rows if not is_extra(row)})
    extra = list(dict.fromkeys(row.runs[0].run.protocol for row in rows if is_extra(row)))
    once = f"; {', '.join(extra)}: one measurement" if extra else ""
    if planned == [1]:
        return f"One run of one seed{once}: nothing is known of chance."
    counts = " or ".join(map(str, planned))
    alone = sorted({row.key for row in rows for rule in rules_of(rows) if pools.stands_out(row, rule, RANKED_BY)})
    own = f"; {', '.join(alone)}: with their own spread, which is grossly larger" if alone else ""
    return (
        f"Mean ± half-width of the 95 % t-interval of the mean over {counts} seeds, by the spread that rows "
        f"with the same training images share{own}{once}. It says nothing of other test classes."
    )


def groups_explained(columns: list[str]) -> list[str]:
    """A sentence on numbers of a search in other groups, if there is such a column."""
    if not any("_other_groups@" in name for name in columns):
        return []
    return ["Other groups: a query's search leaves out the images of its group, which on glyphs is its font."]


def judgement(rows: list[Row], table: PublishedTable, pools: Pools) -> list[str]:
    """Sentences on how the printed numbers of a dataset's rows were judged, and what that can show."""
    given = [
        (row, metric, verdict)
        for row in rows
        for metric in table.printed(row.key)
        if (verdict := judged(row, metric, table, pools)) and verdict.kind in JUDGED
    ]
    if not given:
        return []
    sentences = []
    differ = sum(verdict.kind == "differs" for _, _, verdict in given)
    chance = LEVEL * len(given)
    sentences.append(
        f"Of {len(given)} printed numbers {differ} differ; if every one was one more run of ours, about {chance:.1f} "
        "would."
    )
    by_recall = [row for row, metric, _ in given if metric == RANKED_BY]
    for spread in dict.fromkeys(pools.of(row, RULE, RANKED_BY) for row in by_recall):
        names = ", ".join(row.name for row in by_recall if pools.of(row, RULE, RANKED_BY) == spread)
        if spread.source == "stated":
            sentences.append("No row has two runs, so no spread is measured, and little can be said.")
        elif spread.rows == 1 and len(by_recall) > 1:
            sentences.append(f"{names}: the spread of {spread.value:.2f} points is grossly larger, and the row's own.")
        else:
            sentences.append(
                f"Spread of Recall@1 over seeds: {spread.value:.2f} points, with {spread.df:.0f} degrees of freedom."
            )
    single = [row.name for row in by_recall if len(row.cell(RULE, RANKED_BY).values) == 1]
    if single and any(pools.of(row, RULE, RANKED_BY).source == "pooled" for row in by_recall):
        sentences.append(f"One run, judged with the spread of other rows: {', '.join(single)}.")
    return sentences + not_told_apart(by_recall, table, pools)


def not_told_apart(rows: list[Row], table: PublishedTable, pools: Pools) -> list[str]:
    """A sentence that names rows whose printed Recall@1 are closer than what the verdicts see."""
    pairs = []
    for row, other in itertools.combinations(rows, 2):
        numbers = [table.printed(of.key)[RANKED_BY] for of in (row, other)]
        worth = judged(row, RANKED_BY, table, pools)
        if worth and worth.worth and numbers[0] is not None and numbers[1] is not None:
            apart, seen = abs(numbers[0] - numbers[1]), worth.worth.sees
            if apart < seen:
                pairs.append((apart, f"{row.name} and {other.name} (printed {apart:.1f} apart, it sees {seen:.1f})"))
    pairs.sort()
    more = f", and {len(pairs) - MOST_PAIRS} more pairs" if len(pairs) > MOST_PAIRS else ""
    named = "; ".join(text for _, text in pairs[:MOST_PAIRS])
    return [f"By Recall@1 a verdict cannot tell these rows apart: {named}{more}."] if pairs else []


def verdicts_explained(table: PublishedTable, stated: float | None) -> list[str]:
    """Sentences that say where the printed numbers come from, and how they are judged."""
    error = f", read off it with an error of {table.error} points" if table.error else ""
    known = any(value is not None for row in table.rows for value in table.printed(row).values())
    source = f"Published: {table.source} ({table.kind}{error}). –: {table.unknown or 'not run'}."
    if not known:
        return [source]
    limits = "; ".join(
        f"{dataset}: " + ", ".join(f"{heading(metric)} {limit:.1f}" for metric, limit in of.items())
        for dataset, of in table.limits.items()
    )
    return [
        source,
        "A printed number is one run, unless the table says otherwise. consistent: it is within the prediction "
        f"interval for one more run of ours and no further away than the stated spread of {stated} points explains, "
        "and the interval is no wider than the limit. differs: it is outside. would have seen: the shortfall that "
        "would have been called different with 80 % probability. docs/verdicts.md: how often each verdict is given.",
        f"Limits in points, {table.limits_reason}: {limits}.",
    ]


def how_complete(rows: list[Row]) -> str:
    """A sentence that says how many of the planned runs are in the table; empty if all are."""
    count = sum(len(row.lacking) for row in rows)
    planned = sum(len(row.runs) for row in rows)
    if count == planned:
        return "Nothing of this table has been run."
    return f"{planned - count} of {planned} planned runs are in this table." if count else ""


def what_lacks(rows: list[Row]) -> list[str]:
    """Sentences on the planned runs that are not in the table, and on runs taken over from other code."""
    lines = [f"Failed: {name}: {error}" for row in rows for name, error in row.failures.items()]
    for title, names in (
        ("Not run", [name for row in rows for name in row.missing]),
        ("Run with other settings than now, and not shown", [name for row in rows for name in row.outdated]),
    ):
        lines += [f"{title}: {', '.join(names)}."] if names else []
    for row in rows:
        lines += [f"Taken over from other code: {name}: {because}" for name, because in row.taken_over.items()]
    return lines
