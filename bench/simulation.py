"""How the papers' runs would scale over GPUs: a simulation, not a measurement.

    python -m bench.simulation                       # the table
    python -m bench.simulation --svg docs/scale.svg  # and the picture

The time of a run is its floating-point operations (`pipeline.runs.cost`) divided by a GPU's speed in this project's
networks, plus the time of a start. The speed is a model: 33 TFLOP/s is what an H100 would do in float32, and gives 98
hours for both papers, without the starts. Workers take runs in the same order as those of the engines: the longest
first, and a held-out run after the run that chooses its epoch. Nodes of 8 GPUs fail at random, with a given mean time
between failures. Their runs lose the work since their last epoch and return to the front of the queue, and the node is
back after 10 minutes. Nothing else is modelled: no slow file system, no SLURM queue. It takes half a minute.
"""

import argparse
import functools
import heapq
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.base.files import whole
from pipeline.runs.cost import MODELLED, cost, costs_of, longest_first, waits
from pipeline.runs.grid import GridRun, grid_runs

GRIDS = ("proxygml", "proxy_an")
TERAFLOPS = MODELLED / 1e12
START = 30.0
"""Seconds before a run's first step, for starting Python and reading the images."""
REPAIR = 600.0
NODE = 8
GPUS = (1, 8, 64, 512)
FAILURES = {"none": 0.0, "one a node in 30 days": 30.0, "one a node a day, as of spot machines": 1.0}
DAY = 86400.0


@dataclass
class Work:
    """A run: its seconds of work, the seconds of an epoch, and the place in the list of the run that it waits for."""

    seconds: float
    epoch: float
    after: int | None
    done: float = 0.0


@dataclass
class Found:
    """The result of a simulation: `makespan` in hours; `idle` and `lost` as shares of the time of all GPUs."""

    makespan: float
    idle: float
    lost: float


def works(teraflops: float) -> list[Work]:
    """The papers' runs, none of them done, on GPUs of this speed."""
    found = []
    for of, waiting, epochs, after in _runs():
        seconds = of / teraflops / 1e12 + waiting
        found.append(Work(seconds, seconds / epochs, after))
    return found


@functools.cache
def _runs() -> list[tuple[float, float, int, int | None]]:
    """The papers' runs in the order in which workers take them: operations, seconds in which the GPU waits for the
    processor, epochs, and the place in this list of the run that the run waits for. A run that two tables share appears
    once."""
    asked = [run for grid in GRIDS for run in grid_runs(grid)]
    runs = longest_first(asked, costs_of(asked))
    unique: dict[str, GridRun] = {}
    for run in runs:
        unique.setdefault(json.dumps(run.run.settings()), run)
    places = {settings: place for place, settings in enumerate(unique)}
    found = []
    for run in unique.values():
        chooser = run.run.chosen_by
        after = places[json.dumps(chooser.settings())] if chooser else None
        found.append((cost(run), waits(run), max(1, run.run.recipe.epochs), after))
    return found


def failures(generator: np.random.Generator, nodes: int, days: float, until: float) -> list[tuple[float, int]]:
    """The times in seconds, up to `until`, at which nodes fail, and the nodes."""
    if not days:
        return []
    found = []
    for node in range(nodes):
        at = generator.exponential(days * DAY)
        while at < until:
            found.append((at, node))
            at += REPAIR + generator.exponential(days * DAY)
    return sorted(found)


def simulate(teraflops: float, gpus: int, days: float, seed: int = 0) -> Found:
    """Simulate all runs on `gpus` GPUs, on nodes that fail once in `days` days on average (0: never)."""
    queue = works(teraflops)
    total = sum(work.seconds + START for work in queue)
    nodes = -(-gpus // NODE)
    broken = failures(np.random.default_rng(seed), nodes, days, 20 * total / gpus + 100 * DAY)
    events: list[tuple[float, int, int, int]] = []  # time, kind (0 free, 1 ends, 2 fails), GPU or node, try
    for gpu in range(gpus):
        heapq.heappush(events, (0.0, 0, gpu, 0))
    for at, node in broken:
        heapq.heappush(events, (at, 2, node, 0))
    waiting, doing = list(range(len(queue))), dict[int, tuple[int, float]]()
    tries, down, finished = [0] * gpus, [0.0] * nodes, set[int]()
    free, lost = set[int](), 0.0
    now = 0.0
    while len(finished) < len(queue):
        now, kind, who, attempt = heapq.heappop(events)
        if kind == 0:
            free.add(who)
        elif kind == 1 and attempt == tries[who] and who in doing:
            finished.add(doing.pop(who)[0])
            free.add(who)
        elif kind == 2:
            down[who] = now + REPAIR
            for gpu in range(who * NODE, min(gpus, (who + 1) * NODE)):
                free.discard(gpu)
                tries[gpu] += 1
                heapq.heappush(events, (down[who], 0, gpu, tries[gpu]))
                if gpu in doing:
                    number, began = doing.pop(gpu)
                    work = queue[number]
                    made = max(0.0, now - began - START)
                    kept = (work.done + made) // work.epoch * work.epoch if work.epoch else 0.0
                    lost += min(now - began, made + START) - (kept - work.done)
                    work.done = kept
                    waiting.insert(0, number)
        for gpu in sorted(gpu for gpu in free if down[gpu // NODE] <= now):
            ready = next((n for n in waiting if queue[n].after is None or queue[n].after in finished), None)
            if ready is None:
                break
            waiting.remove(ready)
            free.discard(gpu)
            doing[gpu] = (ready, now)
            tries[gpu] += 1
            heapq.heappush(events, (now + START + queue[ready].seconds - queue[ready].done, 1, gpu, tries[gpu]))
    spent = sum(work.seconds + START for work in queue) + lost
    return Found(now / 3600, 1 - spent / (now * gpus), lost / (now * gpus))


def longest_chain(teraflops: float) -> float:
    """The hours of the longest run together with the run that it waits for. No number of GPUs is faster."""
    queue = works(teraflops)
    chains = [w.seconds + START + (queue[w.after].seconds + START if w.after is not None else 0) for w in queue]
    return max(chains) / 3600


def picture(path: Path, found: dict[str, dict[int, Found]], chain: float) -> None:
    """Write the makespan by the number of GPUs as an SVG file."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "simulation"})
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    counts = list(next(iter(found.values())))
    for name, by_gpus in found.items():
        axes.loglog(counts, [by_gpus[count].makespan for count in counts], marker="o", label=f"failures: {name}")
    first = found["none"][counts[0]].makespan
    axes.loglog(counts, [first / count for count in counts], linestyle=":", color="grey", label="perfect")
    axes.axhline(chain, linestyle="--", color="grey", linewidth=1, label="longest run and the one it waits for")
    axes.set(xlabel="GPUs", ylabel="hours (simulated)", xticks=counts, xticklabels=[str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    with whole(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teraflops", type=float, default=TERAFLOPS, help="teraflops of one GPU (default 33)")
    parser.add_argument("--svg", type=Path, help="the SVG file to draw")
    words = parser.parse_args()
    queue, chain = works(words.teraflops), longest_chain(words.teraflops)
    hours = sum(work.seconds + START for work in queue) / 3600
    print(
        f"{len(queue)} runs, {hours:.0f} h on one GPU. The longest takes {max(w.seconds for w in queue) / 3600:.2f} h,"
    )
    print(f"together with the run that it waits for {chain:.2f} h. Simulated. If nodes fail, means of 5 seeds.\n")
    print("| GPUs | failures | hours | speed-up | idle | lost work |\n|---|---|---|---|---|---|")
    found: dict[str, dict[int, Found]] = {}
    for name, days in FAILURES.items():
        for gpus in GPUS:
            tries = [simulate(words.teraflops, gpus, days, seed) for seed in range(5 if days else 1)]
            mean = Found(*(statistics.mean(getattr(one, key) for one in tries) for key in ("makespan", "idle", "lost")))
            found.setdefault(name, {})[gpus] = mean
            print(
                f"| {gpus} | {name} | {mean.makespan:.2f} | {hours / mean.makespan:.1f} | {mean.idle:.1%} | "
                f"{mean.lost:.2%} |",
                flush=True,
            )
    if words.svg:
        picture(words.svg, found, chain)


if __name__ == "__main__":
    main()
