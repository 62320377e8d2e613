"""A published.yaml is checked whole when it is read, and against the table that it belongs to."""

from pathlib import Path

import pytest

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.tables.published import check_table, read_published

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
        ("recall@1: 59.4", "recall@1: 5_9.4", r"line 20: 5_9\.4: readers of YAML differ"),
        ("recall@1: 59.4", "nmi_arithmetic: 59.4", "line 20: the key nmi_arithmetic is in line 20 already"),
        ("      cub/384:", "      cub/64:", "line 21: the key cub/64 is in line 20 already"),
        ("      cub/64:", "      cub/../64:", r"rows\.cub/\.\./64: a row is named <dataset>/<value>-<value>"),
        ("      cub/64:", "      cub:", r"rows\.cub: a row is named"),
        ("  main:\n", "  ../main:\n", r"tables\.\.\./main: a name has only the letters"),
        ("retrieved: #", "retrieved: {}\nretrieved: #", "the key retrieved is in line 3 already"),
        ("  cub: {images: 5924", "  cub: {images: 0", r"retrieved\.cub\.images: .* greater than or equal to 1"),
        ("tolerance: 0.8", "tolerance: 1e9", r"tolerance: .* less than or equal to 100"),
        ("source: the authors' slides, main table", "source: ''", r"tables\.main\.source: give one line of text"),
        ("title: Comparison on three", 'title: "a\\nb"  # Comparison on three', r"tables\.main\.title: give one line"),
        ("method: SemiHard-64", "method: null", r"references\.0\.method: .* valid string"),
    ],
)
def test_what_a_ledger_cannot_hold_is_named(tmp_path, old, new, said):
    assert old in TEXT
    path = tmp_path / "published.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(BadInputError, match=said) as raised:
        read_published(path)
    assert str(raised.value).startswith(f"{path}:")


def test_a_table_has_to_fit_the_one_that_is_run():
    path, tables = PAPER / "published.yaml", read_params(PAPER / "params.yaml").tables
    published = read_published(path)
    for name, table in tables.items():
        if table.layout != "ranked":
            check_table(path, published, name, table)
    with pytest.raises(
        BadInputError, match=r"published\.yaml: tables\.others: there is no such table, choose one of main"
    ):
        check_table(path, published, "others", tables["main"])
    with pytest.raises(
        BadInputError, match=r"tables\.ratio\.chart: ratio is no axis of the table, choose one of dimension"
    ):
        check_table(path, published, "ratio", tables["main"].model_copy(update={"datasets": ["cars"]}))
    with pytest.raises(BadInputError, match=r"retrieved: inshop is missing, which the table main searches"):
        check_table(path, published, "main", tables["main"].model_copy(update={"datasets": ["cub", "inshop"]}))
