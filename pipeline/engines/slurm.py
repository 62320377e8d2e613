"""The SLURM engine: an array of tasks, each a worker that takes runs from the store, one after another.

A task is `pipeline.run_grid` with the local engine on the GPUs that SLURM gave it. At a time limit, a preemption or
`scancel`, SLURM asks the script to stop some time before it kills it. The script passes this on, the run saves, and the
script puts its own task back into the queue. This side only waits. It uses `squeue` and the store, and never `sacct`,
which shows nothing if accounting is off. If all tasks have ended and runs are left, it submits again, as long as runs
make progress.

The nodes need the clone's folder under the same path, on a file system with file locks.
"""

import shlex
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

from pipeline.base.environment import handed
from pipeline.base.files import BadInputError, write_text
from pipeline.base.machine import Machine, variable
from pipeline.engines.local import Outcome
from pipeline.engines.watch import Stop, Watch
from pipeline.runs.grid import GridRun

FOLDER = Path("data/store/slurm")
"""The folder that has a folder for each submission, with its script and its logs."""

WARNED = 120
"""A task is asked to stop this many seconds before its time limit: time for a step and a checkpoint."""

REQUEUED_AT_MOST = 1000

SILENT_AT_MOST = 3600
"""SLURM may be out of reach for this number of seconds while no run makes progress; then this side gives up."""

QUEUED = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Cleaning")
"""Reasons for which tasks wait in every queue; others are shown."""

NOT_STARTED = "launch failed requeued held"
"""The reason of tasks that their nodes could not start. SLURM holds them until a person lets them go."""

SCRIPT = """\
#!/bin/bash
# A worker that takes runs until there is no more run to take. Written by `python -m pipeline.run_grid`.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{warned}
#SBATCH --chdir={root}
#SBATCH --output={logs}
{options}
{exports}
export PIPELINE_WORKER=$SLURM_ARRAY_TASK_ID
{command} &
worker=$!
# The run saves when it is asked to stop. `wait` returns at once when a signal comes, so it is called again.
trap 'kill -TERM "$worker" 2>/dev/null' TERM
wait "$worker"
while kill -0 "$worker" 2>/dev/null; do
    wait "$worker"
done
wait "$worker"
code=$?
# {stop} exists if all tasks were stopped for good.
if [ "$code" = 143 ] && [ ! -e {stop} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    # Not $SLURM_JOB_ID: for the last task of an array that is the id of the array, and all tasks would be requeued.
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def check(machine: Machine) -> None:
    """Raise `BadInputError` if the settings of the machine cannot be used with SLURM."""
    if machine.device == "auto":
        raise BadInputError(
            f"machine.device: auto may mean another device here than on SLURM's nodes: write cuda or cpu, or set "
            f"{variable('device')}"
        )
    if machine.workers_at_most is None:
        raise BadInputError(
            f"machine.workers_at_most: say how many tasks SLURM may run at a time, here or by "
            f"{variable('workers_at_most')}"
        )


def script(machine: Machine, words: list[str], name: str, tasks: int, since: float) -> str:
    """The script of an array of `tasks` workers, which call run_grid with the command line `words`."""
    folder = Path.cwd() / FOLDER / name
    settings = {
        # A worker uses what SLURM gave its task.
        "engine": "local", "gpus": "all", "workers_at_most": "null", "device": machine.device,
        "workers": machine.workers, "runs_per_gpu": machine.runs_per_gpu,
        "cuda_graphs": machine.cuda_graphs,
        **({"checkpoints": machine.checkpoints} if machine.checkpoints else {}),
    }  # fmt: skip
    variables = handed() | {variable(key): str(value) for key, value in settings.items()}
    command = [sys.executable, "-m", "pipeline.run_grid", *words, "--worker-since", str(since)]
    return SCRIPT.format(
        name=name,
        last=tasks - 1,
        warned=WARNED,
        root=shlex.quote(str(Path.cwd())),
        logs=shlex.quote(f"{folder}/%a.log"),
        options="\n".join(f"#SBATCH {shlex.quote(option)}" for option in shlex.split(machine.sbatch)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        command=shlex.join(command),
        stop=shlex.quote(str(folder / "stop")),
        restarts=REQUEUED_AT_MOST,
    )


def printed(machine: Machine, words: list[str], runs: int) -> str:
    """The script, for users who submit it by hand. The folder of its logs is made."""
    check(machine)
    name = f"runs-{uuid.uuid4().hex[:8]}"
    (FOLDER / name).mkdir(parents=True)
    return script(machine, words, name, max(1, min(runs, machine.workers_at_most or 1)), time.time())


def _asked(*command: str) -> str:
    """The output of a SLURM program. Raises `BadInputError` if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=120)
    except FileNotFoundError:
        raise BadInputError(
            f"machine.engine: slurm needs {command[0]}, which is not here: run this on a machine that submits jobs"
        ) from None
    if done.returncode:
        raise BadInputError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


class Array:
    """A submitted array of workers."""

    def __init__(self, machine: Machine, words: list[str], tasks: int, since: float):
        self.name = f"runs-{uuid.uuid4().hex[:8]}"
        self.folder = FOLDER / self.name
        self.reasons: Counter[str] = Counter()
        """Why tasks wait, if not for their turn, after the last call of `tasks`."""
        self.folder.mkdir(parents=True)
        write_text(self.folder / "script", script(machine, words, self.name, tasks, since))
        self.job = _asked("sbatch", "--parsable", str(self.folder / "script")).split(";")[0]
        print(f"SLURM: job {self.job}, {tasks} tasks; logs in {self.folder}", file=sys.stderr, flush=True)

    def tasks(self) -> Counter[str] | None:
        """The number of tasks in each state, such as RUNNING; None if SLURM does not answer now."""
        # Asked by name, because squeue fails for an unknown job, but prints nothing for an unknown name.
        try:
            listed = _asked("squeue", "--noheader", "--array", "--name", self.name, "--format", "%T|%r")
        except (BadInputError, subprocess.TimeoutExpired) as error:
            print(f"SLURM does not answer and will be asked again: {error}", file=sys.stderr, flush=True)
            return None
        found = [line.partition("|") for line in listed.splitlines()]
        self.reasons = Counter(reason for state, _, reason in found if state == "PENDING" and reason not in QUEUED)
        return Counter(state for state, _, _ in found)

    def stop(self, number: int) -> None:
        """Ask all tasks to save and not to requeue; at the second call, end them."""
        (self.folder / "stop").touch()
        saving = [["--state=PENDING", self.job], ["--batch", "--signal=TERM", self.job]]
        for options in saving if number == 1 else [[self.job]]:
            subprocess.run(["scancel", *options], check=False)


def words_of(tasks: Counter[str], reasons: Counter[str]) -> str:
    """The numbers of tasks by state, and why those wait that do not only wait for their turn."""
    said = ", ".join(f"{count} {state.lower()}" for state, count in sorted(tasks.items()))
    return said + "".join(f"; {count} of them: {reason}" for reason, count in sorted(reasons.items()))


def work(machine: Machine, machines: dict[str, Machine], words: list[str], runs: list[GridRun]) -> Outcome:
    """Let SLURM make all runs that are not done. Return when each is done or has failed, or after a SIGTERM or Ctrl-C.
    Raises `BadInputError` if tasks end and no run makes progress."""
    check(machine)
    since = time.time()
    watch = Watch(runs, machines, since)
    with Stop() as stop:
        watch.look()
        while watch.left and not stop.came:
            before = watch.footprint()
            array = Array(machine, words, min(len(watch.left), machine.workers_at_most or 1), since)
            stop.passed_on = array.stop
            if stop.came:  # the stop came while the array was submitted
                array.stop(stop.came)
            shown = ""
            heard, footprint = time.monotonic(), watch.footprint()
            while (tasks := array.tasks()) is None or tasks:
                if tasks is not None and (said := words_of(tasks, array.reasons)) != shown:
                    shown = said
                    print(f"SLURM: tasks: {said}", file=sys.stderr, flush=True)
                if tasks and array.reasons[NOT_STARTED] == tasks.total():
                    subprocess.run(["scancel", array.job], check=False)
                    raise BadInputError(
                        f"SLURM's nodes could not start the tasks, and it held them ({NOT_STARTED}): see the nodes' "
                        "logs of slurmd, such as for a full spool. The tasks are cancelled: start this command again "
                        "when the nodes are well"
                    )
                watch.look()
                if tasks is not None or watch.footprint() != footprint:
                    heard, footprint = time.monotonic(), watch.footprint()
                elif not watch.left or time.monotonic() > heard + SILENT_AT_MOST:
                    break
                if not watch.left and not stop.came:
                    subprocess.run(["scancel", "--state=PENDING", array.job], check=False)
                time.sleep(min(30, 1 + (time.time() - since) / 20))  # less and less often
            watch.look()
            if watch.left and not stop.came and tasks is None:
                raise BadInputError(
                    f"SLURM has not answered for {SILENT_AT_MOST} s, and no run made progress: {len(watch.left)} runs "
                    f"are left. Job {array.job} may still wait or run: start this command again when squeue answers"
                )
            if watch.left and not stop.came and watch.footprint() == before:
                raise BadInputError(
                    f"SLURM's tasks have ended, {len(watch.left)} runs are left, and none made progress: see the logs "
                    f"in {array.folder}"
                )
    watch.outcome.stopped = stop.came > 0
    return watch.outcome
