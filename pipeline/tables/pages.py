"""Tables as Markdown pages."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.tables.published import Published, PublishedTable
from pipeline.tables.ranking import RANKED_BY, Ranked, ranked
from pipeline.tables.rows import PEEKING, SELECTIONS, Cell, Row, difference, is_extra, verdict

HEADINGS = {"map@r": "MAP@R", "r_precision": "R-Precision", "nmi_arithmetic": "NMI", "nmi_geometric": "NMI, geometric"}
REHEARSAL = "REHEARSAL: these runs did not search among the published images. Their numbers mean nothing."
COMPARED = ["", "published", "best test epoch", "n", "last epoch", "held-out", "difference", "verdict"]
PEEKING_HEAD = ["Recall@1, best test epoch", "less last epoch", "less held-out"]
EXTRA = {
    "raw_pixels": "The images themselves, without any training",
    "untrained": "What the network gives before training, pooled",
    "ensemble": "The embeddings of all seeds together, not to be compared with single runs",
}
"""Protocol of a row that a table adds -> a description of the row."""
RANKED_METRICS = [RANKED_BY, "map@r", "nmi_arithmetic"]


def heading(metric: str) -> str:
    """A metric's name in tables."""
    return HEADINGS.get(metric, metric.replace("recall", "Recall"))


def padded(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, padded so that it is easy to read in a terminal. The first line of `table` is the
    head."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in table]
    lines.insert(1, ["-" * width for width in widths])
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def rules_run(rows: list[Row]) -> list[str]:
    """The selection rules of a table, which follow from its protocols."""
    protocols = {run.run.protocol for row in rows for run in row.runs}
    wanted = {"test": ("best_test_epoch", "last_epoch"), "held_out": ("held_out",), "choose_epoch": ()}
    if protocols == {"choose_epoch"}:
        return ["held_out_classes"]
    return [rule for rule in SELECTIONS if any(rule in wanted.get(protocol, ()) for protocol in protocols)]


def lacking(row: Row) -> str:
    """The text of a cell without a number. A row that a table added does not have every selection rule."""
    return "–" if is_extra(row) and any(row.found.values()) else "not run"


def by_selection(rows: list[Row], metrics: list[str], plus_minus: str) -> dict[str, list[list[str]]]:
    """The text of a table without printed numbers: one block for each selection rule, one line for each row, one column
    for each metric."""
    several = len({row.dataset for row in rows}) > 1
    return {
        SELECTIONS[rule]: [
            [
                row.key if several else row.name,
                *(row.cell(rule, metric).text(plus_minus, none=lacking(row)) for metric in metrics),
            ]
            for row in rows
        ]
        for rule in rules_run(rows)
    }


def judged(row: Row, cell: Cell, printed: float | None, table: PublishedTable) -> str:
    """The verdict on a printed number; "–" if the table added the row and nothing was printed for it."""
    if row.foreign:
        return REHEARSAL.split(":")[0]
    return "–" if is_extra(row) else verdict(cell, printed, table, bool(row.failures))


def comparison(rows: list[Row], table: PublishedTable, plus_minus: str) -> list[tuple[Row, list[str]]]:
    """The text of a table with printed numbers: each row and one line for each of its metrics."""
    lines = []
    for row in rows:
        for metric, printed in table.rows.get(row.key, {"recall@1": None}).items():
            best, last, held_out = (row.cell(rule, metric) for rule in ("best_test_epoch", "last_epoch", "held_out"))
            apart, count = difference(best, printed), len(best.values)
            line = [
                heading(metric),
                "–" if printed is None else f"{printed:.1f}",
                best.text(plus_minus),
                str(count) if count == row.planned else f"{count} of {row.planned}",
                last.text(plus_minus),
                held_out.text(plus_minus, none="–"),
                "–" if apart is None else f"{apart:+.2f}",
                judged(row, best, printed, table),
            ]
            lines.append((row, [*row.values, *line]))
    return lines


def complete(rows: list[Row], selection: str) -> list[Row]:
    """The rows of the grid that have all their runs under a selection rule."""
    return [row for row in rows if len(row.found[selection]) == row.planned and not is_extra(row)]


def ranking_selection(rows: list[Row]) -> str:
    """The selection rule of a ranking: one that does not use the test set."""
    return next(rule for rule in ("last_epoch", "held_out", "held_out_classes") if rule in rules_run(rows))


def ranking_lines(places: list[Ranked], selection: str, plus_minus: str) -> list[list[str]]:
    """The head of a ranking and its lines, as text."""
    tested = any(place.p is not None for place in places)
    metrics = [metric for metric in RANKED_METRICS if places[0].row.cell(selection, metric).values]
    head = ["", *map(heading, metrics), "Recall@1 less the best's", *(["p", "p, Holm"] if tested else [])]
    lines = [head]
    for place in places:
        cells = [place.row.cell(selection, metric).text(plus_minus) for metric in metrics]
        test = ["<0.001" if p < 0.001 else f"{p:.3f}" for p in (place.p, place.p_holm) if p is not None]
        first = "best" if place.difference is None else place.difference.text(plus_minus, "+")
        lines.append([place.row.name, *cells, first, *(test or [""] * (2 * tested))])
    return lines


def rank(rows: list[Row], datasets: list[str]) -> list[str]:
    """The lines of a page in the ranked layout: one block for each dataset."""
    lines, selection = [], ranking_selection(rows)
    for dataset in datasets:
        of_dataset = [row for row in rows if row.dataset == dataset]
        whole = complete(of_dataset, selection)
        lines += [f"## {dataset}", "", f"**{SELECTIONS[selection]}. In percent.**", ""]
        if not whole:
            lines += ["No row has all its runs yet.", ""]
            continue
        places = ranked(whole, selection)
        lines += padded(ranking_lines(places, selection, "±"))
        seeds = whole[0].planned
        if seeds > 1:
            lines += [
                f"Mean ± half-width of the 95 % t-interval over {seeds} seeds. p: paired t-test against the best row "
                f"by seed; p, Holm: corrected for {len(places) - 1} comparisons.",
                "",
            ]
        else:
            lines += ["**One seed: nothing is known of chance here, and no test was made.**", ""]
        for row in filter(is_extra, of_dataset):
            cells = (f"{heading(metric)} {row.cell(selection, metric).text('±')}" for metric in RANKED_METRICS)
            lines += [f"{EXTRA[row.runs[0].run.protocol]} ({row.name}): {', '.join(cells)}.", ""]
        left = [row.name for row in of_dataset if row not in whole and not is_extra(row)]
        lines += [f"Not compared, because runs are missing: {', '.join(left)}.", ""] if left else []
    return lines


def plain(name: str) -> str:
    """A network's name without differences of spelling: ResNet-50 and resnet50 become the same."""
    return "".join(character for character in name.lower() if character.isalnum())


def of_networks(published: Published, rows: list[Row]) -> list[PublishedTable]:
    """The printed tables, with only those other methods that have a network of a ranked table's rows."""
    networks = {plain(run.run.recipe.backbone) for row in rows for run in row.runs}
    same = [
        table.model_copy(update={"references": [row for row in table.references if plain(row.network) in networks]})
        for table in published.tables.values()
    ]
    return [table for table in same if table.references]


def others(published: Published, datasets: list[str], rows: list[Row]) -> list[str]:
    """The lines of a page with other methods' printed numbers for the networks of a ranked table."""
    lines: list[str] = []
    for table in of_networks(published, rows):
        shown = references(table, datasets)
        if shown:
            lines += [*shown, f"Theirs: {table.title}; {table.source} ({table.kind}).", ""]
            lines += [*(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    return lines


def references(table: PublishedTable, datasets: list[str]) -> list[str]:
    """The lines of a page with the other methods' rows, as the paper prints them."""
    lines: list[str] = []
    for title, block in reference_blocks(table, datasets).items():
        lines += [f"**{title}.**", "", *padded(block)]
    return lines


def reference_blocks(table: PublishedTable, datasets: list[str]) -> dict[str, list[list[str]]]:
    """The printed numbers of other methods on each dataset: title -> lines of text, the head first."""
    blocks = {}
    for dataset in datasets:
        rows = [row for row in table.references if dataset in row.numbers]
        if rows:
            metrics = list(rows[0].numbers[dataset])
            printed = [
                [row.method, row.network, *("–" if value is None else f"{value:.1f}" for value in values.values())]
                for row in rows
                for values in [row.numbers[dataset]]
            ]
            head = ["method", "network", *map(heading, metrics)]
            blocks[f"Other methods on {dataset}, as printed; not run here"] = [head, *printed]
    return blocks


def curves(rows: list[Row], table: PublishedTable) -> list[str]:
    """The lines of a page with the paper's Recall@1 by epoch and ours beside it, as means over the runs that were
    evaluated at that epoch."""
    lines: list[str] = []
    for row in rows:
        printed = table.curves.get(row.key)
        if printed:
            ours = {epoch: [run[int(epoch)] for run in row.histories if int(epoch) in run] for epoch in printed}
            cells = [
                [epoch, f"{value:.1f}", Cell(ours[epoch], [], row.planned).text("±", none="–")]
                for epoch, value in printed.items()
            ]
            lines += [f"**Recall@1 on the test set by epoch, {row.key}.**", ""]
            lines += padded([["epoch", "published", "ours"], *cells])
    return lines


def peeking_rows(rows: list[Row]) -> list[Row]:
    """The rows with enough seeds to tell the effect of choosing the epoch on the test set from chance."""
    return [row for row in rows if len(row.peeking("last_epoch").values) > 1 and not is_extra(row)]


def peeking_lines(rows: list[Row]) -> list[list[str]]:
    """For each row one line with the columns of `PEEKING_HEAD`."""
    return [[row.key, *(row.peeking(rule).text("±", "+", "–") for rule in PEEKING.values())] for row in rows]


def peeking(rows: list[Row]) -> list[str]:
    """The lines of a page on what choosing the epoch on the test set adds."""
    lines = peeking_lines(peeking_rows(rows))
    title = "**Peeking: what choosing the epoch on the test set adds, in points, paired by seed.**"
    return [title, "", *padded([PEEKING_HEAD, *lines])] if lines else []


def numbers_mean(rows: list[Row]) -> str:
    """A sentence that says what a number of the table is."""
    planned = sorted({row.planned for row in rows if not is_extra(row)})
    extra = list(dict.fromkeys(row.runs[0].run.protocol for row in rows if is_extra(row)))
    once = f"; {', '.join(extra)}: one measurement" if extra else ""
    if planned == [1]:
        return f"One run of one seed{once}: nothing is known of chance."
    counts = " or ".join(map(str, planned))
    return f"Mean ± half-width of the 95 % t-interval over {counts} seeds{once}."


def what_lacks(rows: list[Row]) -> list[str]:
    """Sentences on the planned runs that are not in the table, and on runs taken over from other code."""
    lines = []
    count = sum(len(row.missing) + len(row.failures) + len(row.outdated) for row in rows)
    planned = sum(len(row.runs) for row in rows)
    if 0 < count < planned:
        lines += [f"**{planned - count} of {planned} planned runs are in this table.**", ""]
    if count == planned:
        lines += ["**Nothing of this table has been run.**", ""]
    for row in rows:
        lines += [f"Failed: {name}: {error}" for name, error in row.failures.items()]
    for title, names in (
        ("Not run", [name for row in rows for name in row.missing]),
        ("Run with other settings than now, and not shown", [name for row in rows for name in row.outdated]),
    ):
        lines += [f"{title}: {', '.join(names)}.", ""] if names else []
    for row in rows:
        lines += [f"Taken over from other code: {name}: {because}" for name, because in row.taken_over.items()]
    return lines


def verdicts_explained(table: PublishedTable) -> list[str]:
    """The lines of a page that say where the printed numbers come from, and when a number counts as reproduced."""
    error = f", read off it with an error of {table.error} points" if table.error else ""
    allowed = f"{table.tolerance} points" + (f" and the error of reading, {table.error}" if table.error else "")
    return [
        f"Published: {table.source} ({table.kind}{error}). –: {table.unknown or 'not run'}.",
        "",
        "Reproduced: the printed number is in the interval of ours at the best test epoch, or no further from our "
        f"mean than {allowed}: {table.tolerance_reason}.",
        "",
        *(f"- {note}" for note in table.notes),
        *([""] if table.notes else []),
    ]


def links(rows: list[Row], folder: Path) -> list[str]:
    """The lines of a page with links to the metrics and to made.json of every run. The page is in `folder`."""
    lines = ["The metrics of every run, by seed, and when and where it was made:", ""]
    for row in rows:
        shown = []
        for run in row.runs:
            files = [(run.place.name, run.metrics), ("made", run.made)]
            there = [f"[{name}]({os.path.relpath(file, folder)})" for name, file in files if file.is_file()]
            shown += [" ".join(there)] if run.metrics.is_file() else []
        if shown:
            lines.append(f"- {row.key}: {', '.join(shown)}")
    return lines if len(lines) > 2 else []
