"""A grid's results as one archive: what is in it, what is checked in it, and archives that were made to do harm."""

import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline import bundle, verify
from pipeline.base.files import BadInputError, sha256
from pipeline.bundles import checked, opened
from pipeline.bundles.contents import METADATA

RUN = "metrics/runs/default/glyphs/glyphs/proxy_an/0.json"
QUERIES = "data/cached/queries/default/glyphs/glyphs/proxy_an/0/queries.npz"
TABLE = "metrics/tables/default/glyphs.md"


@pytest.fixture(scope="module")
def archive(project):
    """A bundle of the small project, with weights."""
    path = project.folder / "data/bundles/default.zip"
    said = project.run("python", "-m", "pipeline.bundle", "default", "--weights")
    assert said.endswith(f"SHA-256 {sha256(path)}\n"), said
    return path


@pytest.fixture
def unpacked(archive, tmp_path, monkeypatch):
    """The current folder is what is in the bundle, to be changed."""
    with zipfile.ZipFile(archive) as opened_archive:
        opened_archive.extractall(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    return tmp_path / "in"


def test_a_bundle_is_described_whole_and_the_same_again(project, archive, unpacked, monkeypatch, capsys):
    graph = {entity["@id"]: entity for entity in json.loads(Path(METADATA).read_text())["@graph"]}
    assert graph[METADATA]["conformsTo"]["@id"] == "https://w3id.org/ro/crate/1.1"
    root = graph[graph[METADATA]["about"]["@id"]]
    assert root["@type"] == "Dataset" and {"name", "description", "datePublished"} <= root.keys()
    assert graph[root["license"]["@id"]]["@type"] == "CreativeWork"
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()} - {METADATA}
    assert files == {part["@id"] for part in root["hasPart"]} and files >= {
        *("LICENSE", "NOTICE", "CITATION.cff", "requirements.lock", "dvc.lock", "params.yaml", RUN, QUERIES, TABLE),
        *("metrics/reports/default/index.html", RUN.replace("runs", "made", 1), "metrics/curves/default.csv"),
        "data/runs/default/glyphs/glyphs/proxy_an/0/last_epoch.pt",
    }
    assert all(graph[name]["sha256"] == sha256(unpacked / name) for name in files)
    assert graph[RUN]["identifier"] == json.loads(Path(RUN).read_text())["key"]

    project.run("python", "-m", "pipeline.bundle", "default", "--weights", "--out", str(unpacked / "again.zip"))
    assert (unpacked / "again.zip").read_bytes() == archive.read_bytes()
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr("sys.argv", ["verify", str(archive)])
    verify.main()
    said = capsys.readouterr().out
    assert ": 5 of 5 runs have a metrics file that is what its key says\n4 runs have their weights" in said
    assert "5 files of tables were made again from them and compared\n" in said and "wrong" not in said
    monkeypatch.setattr("sys.argv", ["verify", "HEAD"])
    verify.main()
    assert "5 of 5 runs have" in capsys.readouterr().out


def problems():
    return checked.check_grid("default", {}).problems


def replaced(name, old, new):
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new, 1))


def test_what_does_not_follow_from_the_metrics_is_named(unpacked, monkeypatch):
    assert problems() == []
    replaced(TABLE, "| raw_pixels | ", "| raw_pixels | 1")
    replaced(TABLE.replace(".md", ".json"), '"mean": 0.', '"mean": 0.9')
    (line, other) = problems()
    assert line.startswith(f"{TABLE} is not what the metrics files give, from line 7 on") and "glyphs.json" in other
    # Without what the queries found, the rest of a table is compared.
    Path(QUERIES).unlink()
    assert (
        problems() == [line, other]
        and "without the intervals over test classes" in checked.check_grid("default").lines[1]
    )
    # A number that was edited in a metrics file; and a link to what is missing.
    replaced(RUN, '"recall@1": 0.', '"recall@1": 0.9')
    Path(RUN).with_name("1.json").unlink()
    found = problems()
    assert found[0].startswith(f"{RUN} is not a record: it was changed after it was made") and any(
        problem.startswith("metrics/reports/default/index.html links to ") for problem in found
    )
    # And the settings of a bundle cannot ask for more than any machine could list.
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["tables"]["glyphs"]["seeds"] = [*range(60_000)]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(BadInputError, match="asks for 120,000 runs, more than 100,000"):
        problems()


def test_queries_of_another_run_are_not_used(unpacked):
    shutil.copy(QUERIES.replace("/0/", "/1/"), QUERIES)
    assert problems() == [f"{QUERIES} is not what {RUN} lists"]


def test_weights_of_another_run_are_named(unpacked):
    hashes = {path.as_posix(): sha256(path) for path in Path("data/runs").rglob("*.*")}
    assert checked.check_grid("default", hashes).problems == []
    weights = next(name for name in hashes if name.endswith("proxy_an/0/last_epoch.pt"))
    found = checked.check_grid("default", hashes | {weights: "0" * 64})
    assert found.problems == [f"{weights} is not what the record of the run says"]


def edited(archive, out, edit):
    """A copy of a bundle, in which `edit` changes the member's header and the content, or drops it with None."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.infolist():
            if (content := edit(member, source.read(member))) is not None:
                target.writestr(member, content)
    return out


def test_files_that_are_not_those_of_the_description_are_named(archive, tmp_path):
    def edit(member, content):
        if member.filename == TABLE:
            return None
        return content + b" " * (member.filename == RUN)

    path = edited(archive, tmp_path / "edited.zip", edit)
    with zipfile.ZipFile(path, "a") as more:
        more.writestr("more.txt", "more")
    with opened.bundle(path) as (_, _, found):
        assert found == sorted(
            [
                f"{TABLE} is not in the archive",
                f"more.txt is in the archive, and {METADATA} does not name it",
                f"{RUN} was changed: it has another SHA-256 than {METADATA} says",
            ]
        )


def renamed(name):
    def edit(member, content):
        member.filename = name if member.filename == RUN else member.filename
        return content

    return edit


def linked(member, content):
    member.external_attr = (stat.S_IFLNK | 0o777) << 16 if member.filename == RUN else member.external_attr
    return content


HARMFUL = {
    "a folder above": (renamed("../out.json"), "leads out of its folder"),
    "a folder above, within": (renamed("metrics/../../out.json"), "leads out of its folder"),
    "an absolute name": (renamed("/tmp/out.json"), "leads out of its folder"),
    "a repository of git": (renamed(".git/config"), "leads out of its folder, is hidden"),
    "a name of Windows": (renamed("C:\\out.json"), "leads out of its folder"),
    "a name that cannot be printed": (renamed("out\u202e.json"), "leads out of its folder"),
    "a link": (linked, "is a link, a device or encrypted"),
    "twice": (renamed(RUN.replace("/0.json", "/1.json")), "twice"),
    "a file as a folder": (renamed(f"{RUN.replace('/0.json', '/1.json')}/more"), "is no bundle, or damaged"),
    "settings without end": (
        lambda member, content: b"#" * (1 << 21) if member.filename == "params.yaml" else content,
        "has 2,097,152 bytes, more than any file of a bundle",
    ),
    "a member that is too large": (
        lambda member, content: bytes(1 << 24) if member.filename == TABLE else content,
        "has 16,777,216 bytes, more than any file of a bundle",
    ),
    "no description": (lambda member, content: None if member.filename == METADATA else content, "has no ro-crate"),
    "a description of nothing": (
        lambda member, content: b"[]" if member.filename == METADATA else content,
        "is no description of a bundle",
    ),
    "a description with a file twice": (
        lambda member, content: (
            content.replace(b'"@graph": [', b'"@graph": [' + 2 * b'{"@type": "File", "@id": "a", "sha256": "b"},')
            if member.filename == METADATA
            else content
        ),
        "names a File twice",
    ),
    "a description that is nested without end": (
        lambda member, content: b"[" * 200_000 if member.filename == METADATA else content,
        "is not JSON",
    ),
}


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_were_made_to_do_harm_are_refused(archive, tmp_path, monkeypatch, name):
    edit, message = HARMFUL[name]
    monkeypatch.setattr(opened, "MEMBER_LIMIT", 1 << 23)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = edited(archive, tmp_path / "harm.zip", edit)
    with pytest.raises(BadInputError, match=message), opened.bundle(path):
        pass
    assert {of.name for of in tmp_path.iterdir()} == {"scratch", "harm.zip"} and not any(
        (tmp_path / "scratch").iterdir()
    )


def test_what_is_no_bundle_is_one_line(project, archive, tmp_path, monkeypatch):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-1000])
    monkeypatch.chdir(project.folder)
    for command, words, message in (
        (verify, [str(cut)], "is no bundle, or damaged"),
        (verify, ["nowhere.zip"], "nowhere.zip is missing, or no file"),
        (verify, ["nobody"], "nobody: neither a revision of git nor the name of an experiment"),
        (verify, [str(archive), "--revision", "HEAD"], "--revision: name a grid"),
        (bundle, ["default", "--out", "params.yaml"], "name a file that ends in .zip"),
        (bundle, ["default", "--out", str(cut)], "did not make and does not replace"),
        (bundle, ["photos"], "photos: nothing to hand on: make its runs and tables first"),
    ):
        monkeypatch.setattr("sys.argv", ["command", *words])
        with pytest.raises(BadInputError, match=message):
            command.main()


def test_tables_of_other_runs_are_not_handed_on(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    text = Path(TABLE).read_text()
    replaced(TABLE, "| raw_pixels | ", "| raw_pixels | 1")
    try:
        monkeypatch.setattr("sys.argv", ["bundle", "default", "--out", "data/other.zip"])
        with pytest.raises(
            BadInputError, match=r"default is not ready to be handed on: metrics/tables/default/glyphs\.md"
        ):
            bundle.main()
        assert not Path("data/other.zip").exists()
    finally:
        Path(TABLE).write_text(text)
