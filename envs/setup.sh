#!/usr/bin/env bash
# Make the project's environment, .venv. `make` calls this before every target that needs it; it returns at
# once if nothing changed.
#
# Input: PYTHON (optional, the Python to use), the locks beside this file, pyproject.toml. Output: .venv;
# its stamp .installed is written last. Everything is pinned by version and hash. bootstrap.lock installs
# uv. uv installs requirements.lock, and builds the few packages without a wheel with bootstrap.lock's
# setuptools. No root is needed. Package indices and proxies are those configured for pip and uv.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.installed       # what is installed
unfinished=$venv/.installing # exists during an installation, and after one that did not finish
allowed="3.11 3.12"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    say "$@" >&2
    exit 1
}

# If `make` runs twice at the same time, the second waits for the first.
if command -v flock >/dev/null; then
    exec 9<envs/requirements.lock
    flock 9 || true
fi

# Everything that determines the contents of .venv. `where` is included because an environment cannot be
# moved.
wanted_state() {
    "$1" - <<'EOF'
import hashlib, json, os, tomllib

def digest(content):
    return hashlib.sha256(content).hexdigest()

with open("pyproject.toml", "rb") as stream:
    project = tomllib.load(stream)
install = [project["build-system"], project["project"], project["tool"].get("setuptools")]
print(digest(json.dumps(install).encode()), "pyproject.toml")
for lock in ("envs/bootstrap.lock", "envs/requirements.lock"):
    with open(lock, "rb") as stream:
        print(digest(stream.read()), lock)
print("where", os.getcwd())
EOF
}

full_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
minor_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

if [[ -e $stamp && ! -e $unfinished && "$(wanted_state $venv/bin/python 2>/dev/null)" == "$(<$stamp)" ]] &&
    [[ -z ${PYTHON:-} || "$(minor_version "$PYTHON")" == "$(minor_version $venv/bin/python)" ]]; then
    exit 0
fi

# Find a Python of an allowed version that can make an environment. A name on PATH may be a broken shim, so
# each is tried.
find_python() {
    local name candidate version missing tried=()
    local -A seen=()
    for name in ${PYTHON:-python3.12 python3.11 python3}; do
        while read -r candidate; do
            [[ $candidate == "$PWD/$venv/"* || -n ${seen[$candidate]:-} ]] && continue
            seen[$candidate]=yes
            if ! version=$(full_version "$candidate"); then
                tried+=("$candidate: does not run")
            elif [[ " $allowed " != *" ${version%.*} "* ]]; then
                tried+=("$candidate: is $version")
            elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                missing="without the venv module (Debian, Ubuntu: package python${version%.*}-venv)"
                tried+=("$candidate: is $version $missing")
            else
                python=$candidate
                return
            fi
        done < <(type -aP "$name")
    done
    say "no usable Python: version ${allowed// / or } is needed. Found:" >&2
    if ((${#tried[@]})); then
        printf '  %s\n' "${tried[@]}" >&2
    else
        echo "  nothing named ${PYTHON:-python3.12, python3.11 or python3}" >&2
    fi
    fail "install one, or name one: make PYTHON=/path/to/python3.12 ..."
}

# Make .venv from scratch if it is missing, broken, moved, of another Python than the requested one, or half
# installed.
reason=""
if [[ ! -e $venv ]]; then
    reason="new"
elif [[ -e $unfinished ]]; then
    reason="made again: its installation did not finish"
elif ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    reason="made again: it does not work"
elif [[ -e $stamp ]] && ! grep -qxF "where $PWD" $stamp; then
    reason="made again: the folder was moved"
elif [[ -n ${PYTHON:-} && "$(minor_version "$PYTHON")" != "$(minor_version $venv/bin/python)" ]]; then
    reason="made again for PYTHON=$PYTHON"
fi

SECONDS=0
trap 'fail "interrupted; the next make starts over"' INT TERM
if [[ -n $reason ]]; then
    find_python
    version=$("$python" -c 'import platform; print(platform.python_version())')
    say "environment $venv ($reason) with $python, Python $version"
    # bin first, so that an interruption does not leave a seemingly complete .venv
    rm -rf "${venv:?}/bin" "$venv"
    mkdir $venv
    touch $unfinished
    "$python" -m venv $venv
else
    say "environment $venv: updating it"
    touch $unfinished
fi
rm -f $stamp

# Report progress as long as this script runs.
(while sleep 30 <&- >&- 2>&- && kill -0 $$; do say "... $SECONDS s"; done) 9<&- &
ticker=$!
trap 'kill $ticker 2>/dev/null || true' EXIT

packages=$(grep -c '^[a-z0-9].*==' envs/requirements.lock)
say "packages of envs/requirements.lock: $packages (the first time 3.5 GB of downloads; 6 GB on disk)"
again="failed, see above; the next make tries again."
again+=" No network? pip and uv take PIP_INDEX_URL, UV_DEFAULT_INDEX and HTTPS_PROXY"
$venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r envs/bootstrap.lock ||
    fail "installing uv $again"
# --compile-bytecode compiles once here instead of in every job: containers often forbid Python to store
# bytecode.
uv=(env VIRTUAL_ENV="$PWD/$venv" "$venv/bin/uv" pip)
"${uv[@]}" sync --quiet --compile-bytecode --require-hashes --require-build-hashes \
    --build-constraints envs/bootstrap.lock envs/requirements.lock || fail "installing packages $again"
"${uv[@]}" install --quiet --no-deps --no-build-isolation --editable . || fail "installing augbench $again"

wanted_state $venv/bin/python >$stamp.part
mv $stamp.part $stamp
rm -f $unfinished
say "done in $SECONDS s; next: make help, README.md"
