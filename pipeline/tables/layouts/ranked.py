"""The layout `ranked`: a block for each dataset, best row first, each tested against the best (`tables/ranking.py`).
Rows that the table added are shown below the others and not tested."""

from pipeline.tables.columns import RANKED_BY, heading
from pipeline.tables.layouts import Content, not_better, rule_of
from pipeline.tables.model import Block, Entry, Line, Number
from pipeline.tables.ranking import Ranked, ranked
from pipeline.tables.rows import SELECTIONS, Row, is_extra, protocol_of, ranking_rule

COMPARES = False


def complete(rows: list[Row], rule: str) -> list[Row]:
    """The rows of the grid that have all their runs under the rule that chose the weights."""
    return [row for row in rows if len(row.found[rule]) == row.planned and not is_extra(row)]


def blocks(content: Content) -> list[Block]:
    """The blocks of the table."""
    return [_block(content, dataset, ranking_rule(content.rows)) for dataset in content.settings.datasets]


def _block(content: Content, dataset: str, rule: str) -> Block:
    rows = content.of(dataset)
    whole = complete(rows, rule)
    places = ranked(whole, rule) if whole else []
    extra = [row for row in rows if is_extra(row)]
    shown = [place.row for place in places] + extra
    # Of all Recall@K only the first, if the table does not choose.
    columns = content.settings.columns or [
        name for name in content.columns if name == RANKED_BY or not name.startswith("recall@")
    ]
    metrics = [metric for metric in columns if any(row.cell(rule, metric).values for row in shown)]
    tested = any(place.test for place in places)
    lines = [_ranked_line(place, rule, metrics, tested) for place in places]
    for row in extra:
        lines.append(
            Line(
                [Entry(row.name), *_numbers(row, rule_of(row, rule), metrics), *map(Entry, ["–", *[""] * tested])], row
            )
        )
    head = ["", *map(heading, metrics), "Recall@1 less the best's", *(["p"] if tested else [])]
    title = f"{SELECTIONS[rule]}. In percent"
    notes = [*explained(places, extra), *not_better(rows, rule)]
    left = [row.name for row in rows if row not in shown]
    notes += [f"Not compared, because runs are missing: {', '.join(left)}."] if left and places else []
    return Block(title, head, lines if metrics else [], dataset, notes)


def _numbers(row: Row, rule: str, metrics: list[str]) -> list[Entry]:
    return [Entry(row.cell(rule, metric).text(), Number(row, rule, metric)) for metric in metrics]


def less_the_best(place: Ranked) -> tuple[str, str, dict[str, dict[str, float]]]:
    """What a row has less than the best one, with its interval; its p; and both for the .json file."""
    first, p, tests = "best", "", {}
    if place.difference is not None:
        first = f"{place.difference:+.2f}"
        tests = {"less_the_best": {"mean": round(place.difference / 100, 6), "n": place.row.planned}}
    if place.test:
        first += f" ({place.test.low:+.2f} to {place.test.high:+.2f})"
        p = "<0.001" if place.test.p < 0.001 else f"{place.test.p:.3f}"
        interval = {"low": round(place.test.low / 100, 4), "high": round(place.test.high / 100, 4)}
        tests["less_the_best"] |= interval | {"p": round(place.test.p, 3)}
    return first, p, tests


def _ranked_line(place: Ranked, rule: str, metrics: list[str], tested: bool) -> Line:
    first, p, tests = less_the_best(place)
    shown = [Entry(first), *([Entry(p)] if tested else [])]
    return Line([Entry(place.row.name), *_numbers(place.row, rule, metrics), *shown], place.row, tests)


def explained(places: list[Ranked], extra: list[Row]) -> list[str]:
    """Sentences on what the columns mean."""
    notes = []
    if not places:
        notes.append("No row has all its runs yet.")
    elif places[0].row.planned > 1:
        notes.append(
            f"Mean ± half-width of the 95 % t-interval of the mean over {places[0].row.planned} seeds, by the spread "
            "that the rows share. Less the best's: the difference with its 95 % interval, and p, by Dunnett's test "
            f"with one variance for all rows; both hold for {len(places) - 1} comparisons together. They say nothing "
            "of other test classes. The best row was chosen by the same runs, which flatters it a little."
        )
        apart = [place.row.name for place in places[1:] if place.test and place.test.own]
        if apart:
            notes.append(f"The spread differs grossly, so this row was tested with its own: {', '.join(apart)}.")
    else:
        notes.append("One seed: nothing is known of chance here, and no test was made.")
    described: dict[str, list[str]] = {}
    for row in extra:
        described.setdefault(protocol_of(row).said, []).append(row.name)
    return notes + [f"{', '.join(names)}: {said}." for said, names in described.items()]
