#!/bin/sh
# What the container does without a command. Like `make repro`, it ends with the table and the page even if the committed
# ones are right and DVC has nothing to do.
set -eu

dvc repro &
trap 'kill "$!"; exit 143' INT TERM # `docker stop` reaches this process alone
wait "$!"
trap - INT TERM
python -m pipeline.tabulate default
python -m pipeline.report
python -m pipeline.verify default || true

if ! grep -q " $PWD " /proc/self/mounts; then
    echo "All this goes with the container. To keep it, run the container on a clone:" \
        "--volume \"\$PWD:/workspace\" --user \"\$(id -u):\$(id -g)\" (docs/container.md)."
fi
