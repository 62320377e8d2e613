"""The layout of a table with a search: for each dataset, what the rows give on the test set with their settings as they
are and with the chosen ones, best first and tested against the best, and what the search found."""

import statistics

from pipeline.base.search import Search
from pipeline.tables.columns import RANKED_BY, heading
from pipeline.tables.layouts import Content, not_better, rule_of
from pipeline.tables.layouts.ranked import complete, explained, less_the_best
from pipeline.tables.model import Block, Entry, Line, Number
from pipeline.tables.ranking import ranked
from pipeline.tables.rows import SELECTIONS, is_extra
from pipeline.tables.searches import Searched

COMPARES = False
RULE = "held_out"


def blocks(content: Content) -> list[Block]:
    """The blocks of a table with a search."""
    search = content.settings.search
    assert search is not None
    found = []
    for dataset in content.settings.datasets:
        of = [one for one in content.searches if one.dataset == dataset]
        found += [_final(content, dataset, of), _tried(dataset, of, search, len(content.settings.seeds))]
    return found


def _final(content: Content, dataset: str, of: list[Searched]) -> Block:
    columns = content.settings.columns or [name for name in (RANKED_BY, "map@r") if name in content.columns]
    best = complete([one.best for one in of if one.best], RULE)
    places = {place.row.name: place for place in ranked(best, RULE)} if best else {}
    order = {
        name: place for place, name in enumerate(places)
    }  # rows that lack runs come last, in the order of the grid
    of = sorted(of, key=lambda one: order.get(one.best.name, len(order)) if one.best else len(order))
    left = [one.name for one in of if one.best is None or one.best.name not in places]
    tested = any(place.test for place in places.values())
    nothing = ["–", *[""] * tested] if places else []
    lines = []
    for one in of:
        numbers = [Number(row, RULE, metric) for metric in columns for row in (one.first, one.best or one.first)]
        entries = [Entry(number.cell.text(), number) for number in numbers]
        if one.best is None:  # what is chosen is not known
            entries[1::2] = [Entry("not known yet") for _ in columns]
        tests: dict[str, dict[str, float]] = {}
        if one.name in left:
            entries += map(Entry, nothing)
        elif one.best:
            less, p, tests = less_the_best(places[one.best.name])
            entries += [Entry(less), *([Entry(p)] if tested else [])]
        lines.append(Line([Entry(one.name), *entries], one.first, tests))
    extra = [row for row in content.of(dataset) if is_extra(row)]
    for row in extra:
        numbers = [Number(row, rule_of(row, RULE), metric) for metric in columns]
        entries = [entry for of in numbers for entry in (Entry(of.cell.text(), of), Entry("–"))]
        lines.append(Line([Entry(row.name), *entries, *(Entry(text) for text in nothing)], row))
    head = ["", *(f"{heading(metric)}, {which}" for metric in columns for which in ("as it is", "chosen"))]
    head += ["Recall@1, chosen, less the best's", *(["p"] if tested else [])] if places else []
    notes = [
        "As it is: the settings of the params file, which are the first try. Chosen: those of the try that was best on "
        "held-out classes. Each run looked at the test set once, after the epoch that held-out classes chose.",
        *explained([*places.values()], extra),
        *([f"Not compared, because runs are missing: {', '.join(left)}."] if left and places else []),
        *_order(of),
        *not_better(content.of(dataset), RULE),
    ]
    return Block(f"{SELECTIONS[RULE]}. In percent", head, lines, dataset, notes)


def _order(of: list[Searched]) -> list[str]:
    """A sentence on how alike the two orders of the rows are, if there are three or more."""
    pairs = [(one.first.cell(RULE, RANKED_BY), one.best.cell(RULE, RANKED_BY)) for one in of if one.best]
    means = [(first.mean, best.mean) for first, best in pairs if first.values and best.values]
    if len(means) < 3:
        return []
    from scipy.stats import spearmanr  # here, because its import takes a second

    alike = float(spearmanr([first for first, _ in means], [best for _, best in means]).statistic)
    return [
        f"Rank correlation (Spearman) between the orders of {len(means)} rows by Recall@1 as they are and as chosen: "
        f"{alike:.2f}. What lacks to 1 is due to settings, and to chance."
    ]


def _tried(dataset: str, of: list[Searched], search: Search, seeds: int) -> Block:
    lines = []
    for one in of:
        tests = {"search": one.numbers()}
        means, trained = one.means, list(one.trained.values())
        count = f"{len(means)} of {len(one.results)}" if len(means) < len(one.results) else str(len(means))
        count += f", {len(means) - len(trained)} diverged" if len(trained) < len(means) else ""
        values = [f"{100 * means[1]:.2f}" if 1 in means else "not run", "–", "–", "–", "not known yet"]
        if means:
            values[1] = f"{100 * max(means.values()):.2f}"
            values[2] = f"{100 * statistics.stdev(trained):.2f}" if len(trained) > 1 else "–"
            values[3] = f"{100 * one.near:.0f} %"
        if one.chosen:
            values[4] = ", ".join(f"{key} {value}" for key, value in one.points[one.chosen].items()) or "as it is"
        lines.append(Line([Entry(one.name), Entry(count), *map(Entry, values)], one.first, tests))
    head = ["", "tries", "as it is", "best try", "spread over tries", "within a point", "chosen"]
    folds = f"the mean over {search.folds} folds of them" if search.folds > 1 else "their second half"
    note = (
        f"Budget: {search.tries} tries for each row, the settings as they are among them, with one seed. best try: the "
        f"highest Recall@1 on held-out training classes ({folds}), by which a try is chosen; it "
        "flatters a little. spread over tries: the standard deviation, in points, without tries that diverged. within "
        f"a point: the share of tries that are at most a point below the best. Seeds of each "
        f"final row: {seeds}."
    )
    title = f"The search on {dataset}: Recall@1 on held-out training classes, in percent"
    return Block(title, head, lines, notes=[note])
