"""What the tables of a grid are made from: the params file, the paper's printed numbers, and the metrics to show."""

from pipeline.base.config import Params, Table, read_params
from pipeline.runs.grid import grid_folder
from pipeline.tables.published import Published, check_table, read_published


def read_grid(grid: str) -> tuple[Params, Published | None]:
    """The params file of a grid, and its published.yaml if it has one. Raises `BadInputError` if they do not agree."""
    folder = grid_folder(grid)
    params = read_params(folder / "params.yaml")
    file = folder / "published.yaml"
    published = read_published(file) if file.is_file() else None
    for name, table in params.tables.items():
        if published and table.layout != "ranked":
            check_table(file, published, name, table)
    return params, published


def metrics_of(params: Params, table: Table, detailed: bool) -> list[str]:
    """The metrics that a table shows; more of them if it is `detailed`."""
    recipes = [recipe for name, recipe in params.recipes.items() if name in table.datasets]
    recalls = [f"recall@{k}" for recipe in recipes for k in recipe.recall_at]
    if table.protocols == ["choose_epoch"]:
        return list(dict.fromkeys(recalls))
    return [*dict.fromkeys(recalls), "map@r", *(["r_precision", "nmi_geometric"] if detailed else []), "nmi_arithmetic"]
