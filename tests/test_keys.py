"""What a change trains again, evaluates again, or leaves: a table of changes that people make, and of what cannot be
followed by name."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.config import read_params
from pipeline.runs.key import NotReadyError, evaluation_key, training_key
from pipeline.runs.run import make_run
from tests import GRID
from tests.package import Package

PARAMS = read_params(GRID / "params.yaml")


CROPPED = [{"name": "random_resized_crop", "smallest": 0.3}]


CROP = {"name": "random_resized_crop", "smallest": 0.3}


def runs():
    """Runs of every kind, by short names."""

    def run(loss, **changes):
        return replace(make_run(Path("params.yaml"), PARAMS, "glyphs", loss, 0), **changes)

    test, second = run("proxy_an"), run("proxy_an", seed=1)
    choice = replace(test, protocol="choose_epoch")
    recipe = test.recipe.model_copy(update={"backbone": "resnet50", "augment": CROPPED})
    plain = replace(test, loss="none", loss_settings={})
    return {
        "an": test,
        "nca": run("proxy_nca"),
        "gml": run("proxy_gml"),
        "resnet": replace(test, recipe=recipe),
        "chooses": choice,
        "held": replace(test, protocol="held_out", chosen_by=choice),
        "ensemble": replace(test, protocol="ensemble", members=(test, second)),
        "untrained": replace(plain, protocol="untrained"),
        "pixels": replace(plain, protocol="raw_pixels"),
    }


def keys(changes=None):
    """Short name -> the key of the training, and that of the evaluation under a training that did not change."""
    found = {}
    for name, run in runs().items():
        run = (changes or {}).get(name, run)
        trained = training_key(run, "cpu").digest if run.trained else ""
        found[name] = trained, evaluation_key(run, "cpu", "0" * 64).digest
    return found


def concerned(before, after):
    """The runs that are trained again, and the others that are evaluated again."""
    trained = {name for name in before if before[name][0] != after[name][0]}
    return trained, {name for name in before if before[name][1] != after[name][1]} - trained


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package, with made-up data as working directory, and the keys before any change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("keys"))
        splits = (f"splits/glyphs/{part}" for part in ("train", "test", "held_out_train", "held_out_test"))
        for name in ("packed/glyphs/index", "packed/glyphs/groups", *splits):
            Path("data", name).parent.mkdir(parents=True, exist_ok=True)
            Path("data", f"{name}.csv").write_text(f"{name}\n")
        made = Package(Path.cwd())
        made.keys = keys()
        yield made
        made.close()


def test_missing_data_name_their_stage():
    assert str(NotReadyError(Path("data/splits/glyphs/test.csv"))).endswith("(`dvc repro split`)")
    said = str(NotReadyError(Path("data/subsets/cub/partial_0.1.csv")))
    assert said.endswith("(`dvc repro data/dvc.yaml:subsets@cub`, after `python -m pipeline.choose GRID`)")


TRAINED = {"an", "nca", "gml", "resnet", "chooses", "held"}
ALL = {*runs()}
UNTRAINED = {"untrained", "pixels"}
SEARCHED = ALL - {"chooses"}
PROXY_AN = {"an", "resnet", "chooses", "held"}
NOTHING: set[str] = set()
BACKWARD = "    loss.backward()\n"
ZERO = '    optimiser.zero_grad(set_to_none=recipe.frozen_gradients == "none")\n'
EXCHANGED = (ZERO + BACKWARD, BACKWARD + ZERO)
LEFT = [
    ("a metric beside the others", "metrics/retrieval.py", "", "\n\ndef f1(hits):\n    return hits.mean()\n"),
    ("a function in the loop's file", "training/loop.py", "", "\n\ndef another():\n    return Training\n"),
    ("a constant in the losses' file", "losses/__init__.py", "", "\nANOTHER = 3\n"),
    ("one more field of a download", "data/file.py", "", "\n\nclass Mirrored(File):\n    mirror: str = ''\n"),
    ("a comment", "training/step.py", "    loss.backward()", "    # The gradients.\n    loss.backward()"),
    ("a docstring", "training/step.py", '"""Take a step', '"""We take a step'),
    ("a type", "training/step.py", "\n) -> Tensor:", "\n) -> torch.Tensor:"),
    ("an import that is not used", "training/step.py", "import torch\n", "import math\nimport torch\n"),
    ("a message of an error", "training/loop.py", 'f"the loss is', 'f"this loss is'),
    ("a line that is printed", "training/loop.py", "({speed:,.0f} images/s)", "({speed:,.1f} images/s)"),
    ("another loss", "losses/mine.py", "", "class Loss:\n    pass\n"),
    ("another optimiser", "training/optimisers/mine.py", "", "def optimiser(groups):\n    pass\n"),
    ("another schedule", "training/schedules/mine.py", "", "def schedule(epochs, steps):\n    pass\n"),
    ("another augmentation", "training/augmentations/mine.py", "", "class Augmentation:\n    pass\n"),
    ("an optimiser of no recipe", "training/optimisers/sgd.py", "lr=1.0", "lr=2.0"),
    ("an augmentation of no recipe", "training/augmentations/colour_jitter.py", "0.2989", "0.3"),
    ("another backbone", "networks/backbones/mine.py", "", "class Backbone:\n    pass\n"),
    ("weights of another network", "networks/published.py", "", "\nFILES['mine'] = FILES['resnet50']\n"),
    ("a column of tables", "tables/rows.py", "", "\nCOLUMNS = ['f1']\n"),
    ("an engine", "engines/mine.py", "", "def work():\n    pass\n"),
    ("how an engine waits", "engines/slurm.py", "", "\nWAIT = 3\n"),
    ("a check of settings", "base/checks.py", "", "\n\ndef more_problems(recipe):\n    return []\n"),
    ("how files are written", "base/files.py", "", "\n\ndef whole(path):\n    return path\n"),
    ("what a machine is", "base/provenance.py", "", "\n\nclass Meter:\n    pass\n"),
    ("how memory is kept", "__init__.py", "mallopt(M_MMAP_MAX, 0)", "mallopt(M_MMAP_MAX, 1)"),
    ("a variable that changes no bits", "base/environment.py", '"OMP_WAIT_POLICY": "PASSIVE"', '"OMP_X": "PASSIVE"'),
    ("a command", "status.py", "", "\nMORE = 3\n"),
]
"""Changes that concern no run: what it is, the file, the old text (empty: the end of the file), the new text."""
CONCERNS = [
    ("a formula", "losses/proxy_an.py", "-self.alpha * (own", "-1.1 * self.alpha * (own", PROXY_AN, NOTHING),
    ("a constant that some losses use", "losses/__init__.py", "= -1e30", "= -1e29", {"nca", "gml"}, NOTHING),
    (
        "a loss's default",
        "losses/proxy_gml.py",
        "own_class_bonus: bool = True,\n        ",
        "own_class_bonus: bool = False,\n        ",
        {"gml"},
        NOTHING,
    ),
    (
        "a function from elsewhere",
        "losses/proxy_an.py",
        "functional import cross",
        "functional import kl_div as cross",
        PROXY_AN,
        NOTHING,
    ),
    (
        "two lines of the step, exchanged",
        "training/step.py",
        *EXCHANGED,
        TRAINED,
        NOTHING,
    ),
    (
        "a constant of the sampler",
        "training/batches.py",
        "-(-images // batch_size)",
        "images // batch_size",
        TRAINED,
        NOTHING,
    ),
    (
        "a constant of the crops",
        "training/augmentations/random_resized_crop.py",
        "ATTEMPTS = 10",
        "ATTEMPTS = 11",
        {"resnet"},
        NOTHING,
    ),
    (
        "a constant of the optimiser",
        "training/optimisers/adam.py",
        "BETAS = (0.9, 0.999)",
        "BETAS = (0.9, 0.99)",
        TRAINED,
        NOTHING,
    ),
    (
        "an augmentation",
        "training/augmentations/shift.py",
        "2 * self.pixels + 1",
        "2 * self.pixels",
        TRAINED - {"resnet"},
        NOTHING,
    ),
    ("an optimiser's constant", "training/optimisers/adam.py", "(0.9, 0.999)", "(0.9, 0.99)", TRAINED, NOTHING),
    ("a schedule", "training/schedules/steps.py", "epoch >= start", "epoch > start", TRAINED, NOTHING),
    ("a comparison of the loop", "training/loop.py", "> progress.best:", ">= progress.best:", TRAINED, NOTHING),
    (
        "a statement at the top level",
        "training/step.py",
        "",
        "\ntorch.backends.cudnn.benchmark = True\n",
        TRAINED,
        NOTHING,
    ),
    (
        "such a statement that looks like a constant",
        "training/step.py",
        "",
        "\nFOUND = torch.manual_seed(0)\n",
        TRAINED,
        NOTHING,
    ),
    (
        "a network",
        "networks/backbones/small.py",
        "_block(1, 16, 5)",
        "_block(1, 16, 3)",
        TRAINED - {"resnet"},
        UNTRAINED,
    ),
    (
        "what every loss finds in a network",
        "networks/network.py",
        "features.amax((2, 3))",
        "features.amax((3, 2))",
        TRAINED,
        UNTRAINED,
    ),
    (
        "the order of pretrained entries",
        "networks/published.py",
        'BY_ORDER = ("',
        'BY_ORDER = ("resnet50", "',
        TRAINED,
        UNTRAINED,
    ),
    (
        "the processor's instructions",
        "base/environment.py",
        '"avx2"',
        '"avx512"',
        TRAINED,
        UNTRAINED,
    ),
    (
        "the rule of the best epoch",
        "runs/run.py",
        "best: int = max(",
        "best: int = min(",
        {"held"},
        {"an", "nca", "gml", "resnet", "chooses"},
    ),
    (
        "MAP@R",
        "metrics/by_name/map_at_r.py",
        "average_precision.nanmean()",
        "average_precision.nansum()",
        NOTHING,
        SEARCHED,
    ),
    ("a constant of k-means", "metrics/clustering.py", "ITERATIONS = 20", "ITERATIONS = 21", NOTHING, SEARCHED),
    ("the neighbours that are kept", "work/evaluation.py", "NEIGHBOURS = 8", "NEIGHBOURS = 9", NOTHING, SEARCHED),
    (
        "the images themselves",
        "work/evaluation.py",
        "images.metrics(pixels, 0)",
        "images.metrics(pixels, 1)",
        NOTHING,
        {"pixels"},
    ),
    ("what is random", "base/sampling.py", "np.random.Philox(", "np.random.PCG64(", TRAINED, NOTHING),
]
"""Changes that concern runs: what it is, the file, the old text, the new text, what is trained, what is evaluated."""


@pytest.mark.parametrize(
    ("changes", "evaluates"),
    [
        ({"epochs": 9, "dimension": 8, "batch_size": 8}, NOTHING),
        ({"std": [0.7], "memory_format": "contiguous"}, {"untrained"}),
        ({"mean": [0.7]}, UNTRAINED),
        ({"decoded_size": 64}, UNTRAINED),
        ({"metrics": [{"name": "recall"}]}, SEARCHED),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
def test_settings_of_runs_without_training(package, changes, evaluates):
    changed = {
        name: replace(run, recipe=run.recipe.model_copy(update=changes))
        for name, run in runs().items()
        if name != "held"
    }
    again = concerned(package.keys, keys(changed))[1]
    assert again & (UNTRAINED | {"chooses"}) == evaluates & (UNTRAINED | {"chooses"})


@pytest.mark.parametrize(("what", "file", "old", "new"), LEFT, ids=[change[0] for change in LEFT])
def test_what_concerns_no_run(package, what, file, old, new):
    with package.edited(file, old, new):
        assert concerned(package.keys, keys()) == (NOTHING, NOTHING)


@pytest.mark.parametrize(
    ("what", "file", "old", "new", "trains", "evaluates"), CONCERNS, ids=[change[0] for change in CONCERNS]
)
def test_what_concerns_runs(package, what, file, old, new, trains, evaluates):
    if "an" in trains | evaluates:
        evaluates = evaluates | {"ensemble"}  # it is made of those runs
    with package.edited(file, old, new):
        assert concerned(package.keys, keys()) == (trains, evaluates)
