"""The door into the store: what comes from elsewhere, what is damaged, and what a mistake must not remove."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import prune, status
from pipeline.base.files import BadInputError, sha256, write_json
from pipeline.runs import shown, store
from pipeline.runs.grid import chosen_grids, grid_runs
from pipeline.runs.key import digest, settings_of
from pipeline.runs.protocols import PROTOCOLS
from pipeline.runs.record import CODE, HISTORY, RECORD, TrainingRecord, read_made
from pipeline.runs.states import Keys
from tests import GRID, swap
from tests.conftest import ENVIRONMENT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(GRID / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(place: Path, seed: int = 0, **changes) -> str:
    """A run of proxy_an that somebody made, in a folder. Return its key."""
    run = next(run.run for run in grid_runs("default") if run.row == "proxy_an" and run.run.seed == seed)
    content = {"settings": settings_of(run), "data": {}, "code": "0" * 64, "packages": {}, "device": "cpu"}
    place.mkdir(parents=True)
    names = (*PROTOCOLS[run.protocol].files, HISTORY, CODE)
    for name in names:
        (place / name).write_text(f"{name} of seed {seed}")
    record = TrainingRecord.made(
        key=digest(content), content=content, epochs=5, images=10, classes=2,
        files={name: sha256(place / name) for name in names},
    )  # fmt: skip
    write_json(place / RECORD, record.model_dump(mode="json") | changes)
    return record.key


def test_a_run_from_elsewhere_enters_with_what_it_lists_and_nothing_else(folder):
    key = make(folder / "given")
    for name in ("__init__.py", "evil.pth", ".hidden"):
        (folder / "given" / name).write_text("raise SystemExit('executed')")
    assert store.take_in(folder / "given") and store.check(key)
    assert {path.name for path in store.folder(key).iterdir()} == {RECORD, HISTORY, CODE, *PROTOCOLS["test"].files}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": "../../tqdm"}, None),
        ({"key": "0" * 64}, "its key is not the hash of its content"),
        ({"content": {"settings": {}}}, "its key is not the hash of its content"),
        ({"files": {"../../../x.py": "0" * 64}}, "it was changed after it was made"),
        ({"epochs": 4}, "it was changed after it was made"),
        ({"schema_number": 1}, "has the schema 1 where this version reads 3"),
    ],
)
def test_a_forged_record_is_named_and_nothing_enters(folder, capsys, changes, said):
    make(folder / "given", **changes)
    before = sorted(folder.rglob("*"))
    assert not store.take_in(folder / "given")
    assert sorted(folder.rglob("*")) == before
    printed = capsys.readouterr().err
    assert (f"given/{RECORD}" in printed and said in printed) if said else printed == ""
    with pytest.raises(BadInputError, match="is no key of a run"):
        store.folder("../../tqdm")


@pytest.mark.parametrize("key", ["../x", "0" * 63, "0" * 64 + "\n", "A" * 64, "", "0" * 63 + "/"])
def test_a_key_has_64_hexadecimal_digits(key):
    for use in (store.is_done, store.folder, lambda key: store.beside(key, "lock"), store.check):
        with pytest.raises(BadInputError, match="is no key of a run"):
            use(key)


def test_a_record_lists_only_the_files_that_its_protocol_keeps(folder):
    key = make(folder / "given")
    record = json.loads((folder / "given" / RECORD).read_text())
    values = {name: value for name, value in record.items() if name not in ("sha256", "schema_number")}
    for files in ({}, values["files"] | {"../x.py": "0" * 64}, {HISTORY: "0" * 64}):
        with pytest.raises(ValueError, match="does not list the files that its protocol keeps"):
            TrainingRecord.made(**values | {"files": files})
    assert TrainingRecord.made(**values).key == key


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit in weights": lambda place: flip(place / "last_epoch.pt"),
    "bit in history": lambda place: flip(place / HISTORY),
    "bit in record": lambda place: flip(place / RECORD),
    "no weights": lambda place: (place / "last_epoch.pt").unlink(),
    "no record": lambda place: (place / RECORD).unlink(),
    "empty": lambda place: [path.unlink() for path in place.iterdir()],
    "record is a folder": lambda place: ((place / RECORD).unlink(), (place / RECORD).mkdir()),
    "weights are a folder": lambda place: ((place / "last_epoch.pt").unlink(), (place / "last_epoch.pt").mkdir()),
    "deep": lambda place: (place / RECORD).write_text("[" * 100_000),
    "number": lambda place: swap(place / RECORD, '"epochs": 5', '"epochs": 6'),
    "seed": lambda place: swap(place / RECORD, '"seed": 0', '"seed": 1'),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_named_and_set_aside(folder, capsys, damage):
    key = make(folder / "given")
    assert store.take_in(folder / "given")
    shutil.rmtree(folder / "given")
    DAMAGES[damage](store.folder(key))
    assert not store.check(key) and not store.is_done(key)
    aside = store.beside(key, "damaged")
    assert aside.is_dir() and f"the damaged entry is now {aside}" in capsys.readouterr().err
    make(folder / "given")
    assert store.take_in(folder / "given") and store.check(key), "it can be made again"


def test_entries_that_were_exchanged_are_set_aside(folder):
    keys = [make(folder / f"given{seed}", seed) for seed in (0, 1)]
    assert all(store.take_in(folder / f"given{seed}") for seed in (0, 1))
    one, other = map(store.folder, keys)
    one.rename(folder / "away")
    other.rename(one)
    (folder / "away").rename(other)
    assert not any(map(store.check, keys))


def test_an_entry_that_did_not_change_is_not_hashed_again(folder, monkeypatch):
    key = make(folder / "given")
    store.take_in(folder / "given")
    monkeypatch.setattr(store, "check_files", lambda *words: pytest.fail("hashed"))
    assert store.check(key) and store.check(key)


def test_a_damaged_entry_that_another_process_holds_is_left_to_it(folder):
    key = make(folder / "given")
    store.take_in(folder / "given")
    flip(store.folder(key) / HISTORY)
    with store.claim(key):
        store._held.clear()  # as in another process
        assert not store.check(key) and store.is_done(key)


def test_a_name_of_a_damaged_run_is_made_again(folder, capsys):
    """It shares the damaged file with the store, because it is a hard link."""
    key = make(folder / "given")
    store.take_in(folder / "given")
    shutil.rmtree(folder / "given")
    shown.show(key, folder / "shown")
    good = (folder / "shown/last_epoch.pt").read_bytes()
    flip(folder / "shown/last_epoch.pt")
    assert not store.check(key) and not store.take_in(folder / "shown")
    make(folder / "given")
    assert store.take_in(folder / "given")
    shown.show(key, folder / "shown")
    assert (folder / "shown/last_epoch.pt").read_bytes() == good
    assert f"{folder / 'shown'} was edited or damaged: it is now {folder / 'shown.edited'}" in capsys.readouterr().err


def test_weights_of_ones_own_in_the_place_of_a_runs_are_kept(folder):
    key = make(folder / "given")
    store.take_in(folder / "given")
    for number in ("", "-2"):
        shown.show(key, folder / "shown")
        (folder / "shown/last_epoch.pt").unlink()
        (folder / "shown/last_epoch.pt").write_text(f"mine{number}")
        shown.show(key, folder / "shown")
        assert (folder / f"shown.edited{number}/last_epoch.pt").read_text() == f"mine{number}"
        assert (folder / "shown/last_epoch.pt").samefile(store.folder(key) / "last_epoch.pt")


def test_status_names_a_damaged_run_and_leaves_it(folder, monkeypatch, capsys):
    key = make(folder / "given")
    store.take_in(folder / "given")
    monkeypatch.setattr(status, "keys_of", lambda run, device: Keys((key,), ()))
    monkeypatch.setattr(sys, "argv", ["status", "default"])
    status.main()
    assert re.search(r"^default +glyphs +1 +1 +0 +0 +0 ", capsys.readouterr().out, re.M)
    flip(store.folder(key) / "last_epoch.pt")
    status.main()
    said = capsys.readouterr().out
    assert re.search(r"^default +glyphs +1 +0 +0 +0 +1 ", said, re.M)
    assert re.search(
        rf"^default/\S+ is damaged: data/store/{key}/last_epoch.pt is not what its record says", said, re.M
    )
    assert store.is_done(key), "status changes nothing"


@pytest.mark.parametrize(
    "text", ["{}", "[]", "", "{", '{"error": 1, "time": 2}', '{"error": "a", "time": "b"}', "null"]
)
def test_a_damaged_note_of_a_failure_counts_as_none(folder, text):
    store.STORE.mkdir(parents=True)
    store.beside("0" * 64, "error.json").write_text(text)
    assert store.failure("0" * 64) is None


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"training": []}', '{"training": {"key": "a", "seconds": -1}}', "[" * 100_000]
)
def test_a_damaged_made_json_is_named_and_counts_as_none(folder, capsys, text):
    (folder / "made.json").write_text(text)
    assert read_made(folder / "made.json") == {}
    assert "made.json" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "tables: 3", "tables: [1]", "runs: {}"])
def test_an_empty_or_damaged_choice_of_grids_is_one_error(folder, text):
    (folder / "papers").mkdir()
    (folder / "papers/chosen.yaml").write_text(text)
    with pytest.raises(BadInputError, match=r"papers/chosen\.yaml.*pipeline\.choose"):
        chosen_grids()


def files_of(folder: Path) -> dict[str, bytes]:
    places = ("metrics", "data")
    return {str(path): path.read_bytes() for place in places for path in (folder / place).rglob("*") if path.is_file()}


def test_a_mistake_or_an_environment_that_is_not_active_removes_nothing(project, tmp_path, monkeypatch):
    """DVC clears outputs before it starts a stage, unless they persist."""
    copy = project.copy(tmp_path / "project")
    before = files_of(copy.folder)
    copy.edit_params(lambda params: params["losses"]["proxy_an"].update(alfa=12.0))
    assert "losses.proxy_an.alfa: unknown key, did you mean alpha?" in copy.run("dvc", "repro", fails=255)
    assert files_of(copy.folder) == before
    copy.run("git", "checkout", "--quiet", "params.yaml")
    for place in ("data/file.py", "runs/store.py", "tables/rows.py"):
        code = copy.folder / "pipeline" / place
        code.write_text(f"{code.read_text()}\n# changed\n")
    monkeypatch.setitem(ENVIRONMENT, "PATH", "/usr/bin:/bin")
    copy.run(str(Path(sys.executable).with_name("dvc")), "repro", fails=255)
    assert files_of(copy.folder) == before


def test_dvc_removes_nothing_that_people_put_beside_the_runs(project, tmp_path):
    copy = project.copy(tmp_path / "project")
    notes = [copy.folder / "data" / place for place in ("runs/default/glyphs/notes.txt", "queries/default/mine/a.npz")]
    for note in notes:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("years of work")
    assert "up to date" in copy.run("dvc", "repro")
    code = copy.folder / "pipeline/runs/names.py"
    code.write_text(f"{code.read_text()}\n# changed\n")
    assert "show" in copy.repro()
    assert [note.read_text() for note in notes] == ["years of work"] * 2


def test_a_damaged_run_is_brought_back_from_dvcs_cache(project, tmp_path):
    copy = project.copy(tmp_path / "project")
    run = copy.folder / "data/runs/default/glyphs/glyphs/proxy_an/0"
    key = json.loads((run / RECORD).read_text())["key"]
    good = (run / "last_epoch.pt").read_bytes()
    for place in ("data/runs/default", "data/cached/runs"):
        shutil.rmtree(copy.folder / place)
    flip(copy.folder / "data/store" / key / "last_epoch.pt")
    output = copy.run("python", "-m", "pipeline.run_grid", "default", "glyphs")
    assert f"the damaged entry is now data/store/{key}.damaged" in output and ": started" not in output
    assert "1 runs and evaluations taken into the store from DVC's cache" in output
    assert (run / "last_epoch.pt").read_bytes() == good


def test_a_run_of_a_version_with_another_recipe_is_whole_and_cannot_be_evaluated(folder):
    make(folder / "given")
    values = json.loads((folder / "given" / RECORD).read_text())
    values["content"]["settings"]["recipe"]["colour_of_the_sky"] = 3
    values = {name: value for name, value in values.items() if name not in ("sha256", "schema_number")}
    record = TrainingRecord.made(**values | {"key": digest(values["content"])})
    write_json(folder / "given" / RECORD, record.model_dump(mode="json"))
    assert store.take_in(folder / "given") and store.check(record.key)
    with pytest.raises(BadInputError, match=r"is of another version: make the run again"):
        _ = store.entry(record.key, TrainingRecord).recipe


def test_what_an_experiment_names_is_kept_and_what_is_not_known_is_not_removed(folder, monkeypatch):
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout

    keys = [make(folder / f"given{seed}", seed) for seed in (0, 1)]
    assert all(store.take_in(folder / f"given{seed}") for seed in (0, 1))
    write_json(folder / "metrics/runs/default/glyphs/glyphs/proxy_an/0.json", {"key": keys[0], "run": None})
    git("init", "--quiet")
    git("add", "metrics")
    git("commit", "--quiet", "--message", "an experiment")
    git("update-ref", "refs/exps/aa/bbbb/alpha12", "HEAD")
    git("rm", "--quiet", "-r", "metrics")
    git("commit", "--quiet", "--message", "without it")
    wanted = prune.Wanted()
    assert keys[0] in wanted.keys and keys[1] not in wanted.keys
    with pytest.raises(
        BadInputError, match=f"not known whether a grid means data/store/{keys[1]}: data/\\S+ is missing"
    ):
        prune.removable(wanted)
    wanted.unclear = {}
    store.beside(keys[0], "damaged").mkdir()
    store.beside(keys[1], "mine").mkdir()
    store.beside(keys[1], "lock").touch()
    assert sorted(path.name[:70] for path, _ in prune.removable(wanted)) == sorted(
        [keys[1], f"{keys[1]}.checked"[:70], f"{keys[0]}.damag"]
    )
