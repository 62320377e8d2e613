#!/usr/bin/env bash
# Builds the last commit's image on a local Debian and runs it, without Docker: `make image-test`.
#
# As root on Debian or Ubuntu; installs buildah, podman, runc and mmdebstrap where they are missing. Takes 25 GB under
# $TMPDIR (/var/tmp) and removes them at the end. When all is well it writes docker/tested.sha256, by which .ci/run
# knows that this need not be done again, and the bill of materials, image.cdx.json.
set -euo pipefail
cd "$(dirname "$0")/.."
project=$PWD
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
export CONTAINERS_STORAGE_CONF=$work/storage.conf
canary=canary-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')

finish() {
    { podman image unmount --all && buildah unmount --all; } >/dev/null 2>&1 || true
    umount "$work"/storage/overlay 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
say() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
die() { echo "image_test: $1" >&2; exit 1; }

tools=(buildah podman runc mmdebstrap)
if ! type "${tools[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${tools[@]}" >/dev/null
fi
cat > "$work/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
END

say "a base image: a bare Debian 12"
mmdebstrap --quiet --variant=minbase bookworm "$work/base.tar"
podman --log-level error import --quiet "$work/base.tar" localhost/base >/dev/null
rm "$work/base.tar"

# A clone as people have them, with things beside the commit that must not get into the image.
git clone --quiet "file://$project" "$work/clone"
git -C "$work/clone" remote set-url origin "https://user:$canary@example.org/"
mkdir -p "$work/clone/data/raw"
echo "$canary" | tee "$work/clone/.env" >> "$work/clone/data/raw/photograph.jpg"
revision=$(git rev-parse HEAD)

# The settings by which this machine reaches a package index, if it needs any; folders of this machine are left out.
cp "${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}" "$work/ca"
{
    printf '[global]\ncert = /run/secrets/ca\n'
    { python3 -m pip config list || true; } | { grep -v file: || true; } | sort -u -t = -k 1,1 |
        sed -nE "s/^(global|:env:)\.(index-url|extra-index-url|trusted-host|proxy)='(.*)'$/\2 = \3/p"
    echo "# $canary"
} > "$work/pip.conf"

build() {
    local options="--isolation chroot --layers --build-arg BASE=localhost/base"
    options+=" --secret id=pip,src=$work/pip.conf --secret id=ca,src=$work/ca"
    make --silent -C "$work/clone" image ENGINE=buildah BUILD_OPTIONS="$options" > "$work/build.log" 2>&1 ||
        { tail -n 50 "$work/build.log"; die "the build failed"; }
}
say "build"
started=$SECONDS
build
echo "built in $((SECONDS - started)) s: $(podman images --format '{{.Size}}' localhost/proxy-losses)"

say "build again after a change of the code"
git -C "$work/clone" -c user.name=test -c user.email=test@example.org commit --quiet --allow-empty --message change
started=$SECONDS
build
echo "built in $((SECONDS - started)) s"
[ $((SECONDS - started)) -lt 30 ] || die "a change of the code takes more than 30 s to build: look at the layers' order"
git -C "$work/clone" reset --quiet --hard "$revision"
build

# As Docker does: no entry for an unknown user in /etc/passwd. Lower limits, for some machines cannot raise them. Threads
# that wait for one another sleep, so that a busy machine does not take ten times as long.
container() {
    podman --log-level error --runtime runc run --rm --network none --shm-size 2g --passwd=false \
        --ulimit nofile=1024:4096 --ulimit nproc=4096:4096 --env OMP_WAIT_POLICY=passive "$@"
}
image=localhost/proxy-losses

say "what is in it"
label='{{index .Labels "org.opencontainers.image.revision"}}'
[ "$(podman inspect --type image --format "$label" $image)" = "$revision" ] ||
    die "the label with the revision is wrong"
container $image sh -c 'for tool in cc gcc g++ make pip; do ! command -v $tool || exit 1; done
    test "$(id -u)" = 1000 && test -z "$(ls /var/lib/apt/lists)" && test -z "$(git status --porcelain)"' ||
    die "a compiler, a package cache, a changed file, or another user than 1000"
container $image cat .git/config | grep -q remote && die "the image knows a remote"
image_folder=$(podman image mount $image)
syft scan "dir:$image_folder" --base-path "$image_folder" --override-default-catalogers image --quiet \
    --source-name proxy-losses --source-version "$revision" --output "cyclonedx-json=$project/image.cdx.json"
podman image unmount $image >/dev/null
python3 - <<'END'
import json, re
parts = json.load(open("image.cdx.json"))["components"]
listed = {(part["name"].lower().replace("_", "-"), part.get("version")) for part in parts}
locked = re.findall(r"^([\w.-]+)==(\S+) (;?)(.*)", open("requirements.lock").read(), re.M)
absent = [f"{name} {version}" for name, version, marked, _ in locked if not marked and (name, version) not in listed]
assert locked and not absent, f"locked, but not in the bill of materials: {absent}"
print(f"bill of materials: {len(listed)} packages, all that are locked among them")
END

say "nothing of this machine in any layer"
{
    echo "$canary"
    sed -nE 's/^[a-z-]+ = //p' "$work/pip.conf" | grep -v /run/secrets || true
    printf '%s\n' "${https_proxy:-}" "${HTTPS_PROXY:-}" "${PIP_INDEX_URL:-}" "${UV_INDEX_URL:-}" "${UV_DEFAULT_INDEX:-}"
} | grep . > "$work/secrets"
podman save --quiet --format docker-archive $image > "$work/saved.tar"
LC_ALL=C grep -aqF "$revision" "$work/saved.tar" || die "the saved image cannot be searched"
! LC_ALL=C grep -aqF -f "$work/secrets" "$work/saved.tar" || die "the image holds a secret or an address of this machine"
tokens='gh[pousr]_[A-Za-z0-9]{36}|glpat-[A-Za-z0-9_-]{20}|pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}'
! LC_ALL=C grep -aowE "$tokens" "$work/saved.tar" || die "the image holds a token"
rm "$work/saved.tar"

say "without a clone, as it comes"
container $image > "$work/alone.log" 2>&1 || { tail -n 50 "$work/alone.log"; die "the embedded default failed"; }
tail -n 30 "$work/alone.log"
for part in '^| proxy_gml ' metrics/reports/index.html 'have the bytes that commit' 'To keep it'; do
    grep -q "$part" "$work/alone.log" || die "the container does not end with $part"
done
container $image python -m pipeline.train --help | sed -n 1p
container --name stopped $image > "$work/stopped.log" 2>&1 &
until grep -q "Running stage" "$work/stopped.log"; do sleep 1; done
started=$SECONDS
podman --log-level error stop --time 60 stopped >/dev/null
[ $((SECONDS - started)) -lt 30 ] || die "it does not stop when it is told to"
container --shm-size 64m $image true 2>&1 | grep -q -- --shm-size || die "small shared memory went unnoticed"
[ -z "$(container $image true 2>&1)" ] || die "the entry point complains about nothing"
container --read-only --user 4321 $image sh -c 'touch "$HOME/x" "$DVC_SITE_CACHE_DIR/x"' 2>&1 | grep -q 'mount\|Mount' ||
    die "caches that cannot be written went unnoticed"

# The embedded default and doctor on a clone of user 1000's that is mounted, and one volume of caches for all users.
by() { # who, user, what others may do
    local clone=$work/$1
    git clone --quiet "file://$project" "$clone"
    chown -R 1000:1000 "$clone"
    chmod -R "$3" "$clone"
    say "the embedded default as $1"
    container --user "$2" --volume cache:/cache --volume "$clone:/workspace" $image > "$work/$1.log" 2>&1 ||
        { tail -n 50 "$work/$1.log"; die "dvc repro failed as $1"; }
    ! grep 'To keep it' "$work/$1.log" || die "on a clone nothing is lost"
    cp "$clone/dvc.lock" "$work/first.lock"
    container --user "$2" --volume cache:/cache --volume "$clone:/workspace" $image dvc repro > "$work/again.log" 2>&1
    tail -n 1 "$work/again.log" | grep "up to date" ||
        { cat "$work/again.log"; diff "$work/first.lock" "$clone/dvc.lock"; die "$1 has something to do the second time"; }
    container --user "$2" --volume "$clone:/workspace" $image python -m pipeline.doctor
    grep -q '"image": "packages sha256:' "$clone/metrics/made/default/glyphs/glyphs/proxy_an/0.json" || die "no image in the provenance"
    diff -r --exclude run.json "$work/root/data/runs" "$clone/data/runs" || die "$1 gets other bytes than root"
}
by root 0:0 go-w
by owner 1000:1000 go-w
by stranger 4321:4321 a+rwX

say "doctor as a stranger who may not write"
container --user 4321:4321 --volume "$work/owner:/workspace" $image python -m pipeline.doctor && die "doctor saw nothing"

sha256sum .dockerignore Dockerfile docker/default.sh docker/entrypoint.sh requirements.lock tests/image_test.sh > "$work/tested"
mv "$work/tested" docker/tested.sha256
say "all is well: commit docker/tested.sha256 if it has changed"
