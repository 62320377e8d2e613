"""A published.yaml is checked whole when it is read, and against the table that it belongs to."""

from pathlib import Path

import pytest

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.tables.published import check_table, read_published
from tests import swap

PAPER = Path(__file__).parent.parent / "papers/proxygml"
TEXT = (PAPER / "published.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("recall@1: 59.4", "recal@1: 59.4", r"rows\.cub/64\.recal@1: a metric is recall@K"),
        ("recall@1: 59.4", "recall@01: 59.4", r"rows\.cub/64\.recall@01: a metric is recall@K"),
        ("recall@1: 59.4", "recall@1: -59.4", r"recall@1: .* greater than or equal to 0"),
        ("recall@1: 59.4", "recall@1: .nan", r"recall@1: .* finite number"),
        ("recall@1: 59.4", "recall@1: '59.4'", r"recall@1: .* valid number"),
        ("recall@1: 59.4", "recall@1: 5_9.4", r"line 26: 5_9\.4: readers of YAML differ"),
        ("recall@1: 59.4", "nmi_arithmetic: 59.4", "line 26: the key nmi_arithmetic is in line 26 already"),
        ("      cub/384:", "      cub/64:", "line 27: the key cub/64 is in line 26 already"),
        ("      cub/64:", "      cub/../64:", r"rows\.cub/\.\./64: a row is named <dataset>/<value>-<value>"),
        ("      cub/64:", "      cub:", r"rows\.cub: a row is named"),
        ("  main:\n", "  ../main:\n", r"tables\.\.\./main: a name has only the letters"),
        ("retrieved: #", "retrieved: {}\nretrieved: #", "the key retrieved is in line 3 already"),
        ("  cub: {images: 5924", "  cub: {images: 0", r"retrieved\.cub\.images: .* greater than or equal to 1"),
        ("recall@1: 0.9,", "recall@1: 1e9,", r"limits\.cub\.recall@1: .* less than or equal to 100"),
        ("source: the authors' slides, main table", "source: ''", r"tables\.main\.source: give one line of text"),
        ("title: Comparison on three", 'title: "a\\nb"  # Comparison on three', r"tables\.main\.title: give one line"),
        ("method: SemiHard-64", "method: null", r"references\.0\.method: .* valid string"),
    ],
)
def test_what_a_ledger_cannot_hold_is_named(tmp_path, old, new, said):
    path = tmp_path / "published.yaml"
    path.write_text(TEXT)
    swap(path, old, new, 1)
    with pytest.raises(BadInputError, match=said) as raised:
        read_published(path)
    assert str(raised.value).startswith(f"{path}:")


def test_a_table_has_to_fit_the_one_that_is_run():
    path, tables = PAPER / "published.yaml", read_params(PAPER / "params.yaml").tables
    published = read_published(path)
    for name, table in tables.items():
        if table.layout != "ranked":
            check_table(path, published, name, table)
    with pytest.raises(BadInputError, match=r"published\.yaml: tables\.others is missing, .* There are main, "):
        check_table(path, published, "others", tables["main"])
    with pytest.raises(
        BadInputError, match=r"tables\.ratio\.chart: ratio is no axis of the table, choose one of dimension"
    ):
        check_table(path, published, "ratio", tables["main"].model_copy(update={"datasets": ["cars"]}))
    with pytest.raises(BadInputError, match=r"retrieved: inshop is missing, which the table main searches"):
        check_table(path, published, "main", tables["main"].model_copy(update={"datasets": ["cub", "inshop"]}))


def test_a_misspelt_row_is_an_error_and_a_selection_of_rows_is_not():
    path, tables = PAPER / "published.yaml", read_params(PAPER / "params.yaml").tables
    published = read_published(path)
    own = published.tables["ablation"]
    rows = {("cars/SMl" if row == "cars/SML" else row): of for row, of in own.rows.items()}
    wrong = published.model_copy(
        update={"tables": published.tables | {"ablation": own.model_copy(update={"rows": rows})}}
    )
    with pytest.raises(
        BadInputError, match=r"ablation\.rows\.cars/SMl: the table has no such row, did you mean cars/SML"
    ):
        check_table(path, wrong, "ablation", tables["ablation"])
    check_table(path, published, "ablation", tables["ablation"].model_copy(update={"rows": {"loss": ["S", "SML"]}}))
    curves = {"cars/513": {"1": 50.0}}
    main = published.tables["main"].model_copy(update={"curves": curves})
    wrong = published.model_copy(update={"tables": published.tables | {"main": main}})
    with pytest.raises(BadInputError, match=r"main\.curves\.cars/513: the table has no such row"):
        check_table(path, wrong, "main", tables["main"])


def test_a_number_may_be_a_mean_over_runs(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(TEXT)
    swap(path, "recall@1: 59.4", "recall@1: {mean: 59.4, spread: 0.3, runs: 5}", 1)
    table = read_published(path).tables["main"]
    assert table.printed("cub/64")["recall@1"] == 59.4 and table.repeated("cub/64", "recall@1").runs == 5
    assert table.repeated("cub/384", "recall@1") is None


def test_what_the_slides_show():
    """The whole curve, the curves of others, and the error of reading."""
    tables = read_published(PAPER / "published.yaml").tables
    curve = tables["main"].curves["cars/512"]
    assert len(curve) == 50 and (curve["1"], curve["2"]) == (52.3, 63.3) and (curve["4"], curve["48"]) == (74.4, 85.5)
    others = {row.method: row for row in tables["main"].references if row.method in ("Multi-Similarity", "Proxy-NCA")}
    assert {name: len(row.curves["cars"]) for name, row in others.items()} == {"Multi-Similarity": 45, "Proxy-NCA": 38}
    for row in others.values():
        assert max(row.curves["cars"].values()) == row.numbers["cars"]["recall@1"]
    assert tables["proxies"].error == 0.5


def test_limits_are_the_effects_that_their_reasons_name():
    tables = read_published(PAPER / "published.yaml").tables
    main = tables["main"]
    for dataset, limits in main.limits.items():
        for metric, limit in limits.items():
            own = main.rows[f"{dataset}/512"][metric]
            others = [of for row in main.references if (of := row.numbers.get(dataset, {}).get(metric)) is not None]
            assert limit == pytest.approx(abs(own - max(others)), abs=1e-9), (dataset, metric)
    ablation = {row.split("/")[1]: of for row, of in tables["ablation"].rows.items()}
    for metric, limit in tables["ablation"].limits["cars"].items():
        steps = [(less, more) for less in ablation for more in ablation if less != more and {*less} < {*more}]
        steps = [(less, more) for less, more in steps if len(more) == len(less) + 1 and "none" not in (less, more)]
        assert limit == pytest.approx(min(ablation[more][metric] - ablation[less][metric] for less, more in steps))
    proxies = tables["proxies"].rows
    assert tables["proxies"].limits["cars"]["recall@1"] == pytest.approx(
        proxies["cars/0.05-12"]["recall@1"] - proxies["cars/0.05-30"]["recall@1"]
    )
