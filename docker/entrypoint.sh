#!/bin/sh
# Every start of the container: places to write caches to, a word on small shared memory, the image's identity, and
# then the command, which is docker/default.sh where none is given.
set -eu

# Of DVC's index of file hashes each user has one, for nobody else can write to it.
DVC_SITE_CACHE_DIR="$DVC_SITE_CACHE_DIR/$(id -u)"
export DVC_SITE_CACHE_DIR

caches() { mkdir -p "$HOME" "$TORCH_HOME" "$MPLCONFIGDIR" "$DVC_SITE_CACHE_DIR" 2>/dev/null; }
writable() { [ -w "$HOME" ] && [ -w "$TORCH_HOME" ] && [ -w "$MPLCONFIGDIR" ] && [ -w "$DVC_SITE_CACHE_DIR" ]; }
if ! { caches && writable; }; then
    place=$(mktemp -d)
    echo "entrypoint: user $(id -u) cannot write to all of $HOME, $TORCH_HOME, $MPLCONFIGDIR and $DVC_SITE_CACHE_DIR:" \
        "caches go to $place and are lost with the container. Mount a folder of that user's on /cache." >&2
    export HOME="$place/home" TORCH_HOME="$place/torch" MPLCONFIGDIR="$place/matplotlib" DVC_SITE_CACHE_DIR="$place/dvc"
    caches
fi

# Loader processes hand batches over through shared memory; where it is full they die of a bus error.
shared=$(df -P -k /dev/shm 2>/dev/null | awk 'NR == 2 { print int($2 / 1024) }')
if [ "${shared:-0}" -lt 1024 ]; then
    echo "entrypoint: /dev/shm has ${shared:-0} MiB, too little for loader processes (machine.workers above 0):" \
        "add --shm-size=8g to the run command." >&2
fi

if [ -z "${PIPELINE_IMAGE:-}" ]; then
    PIPELINE_IMAGE="packages sha256:$(sha256sum /etc/pipeline-packages | cut -c1-64)"
    export PIPELINE_IMAGE
fi
exec "$@"
