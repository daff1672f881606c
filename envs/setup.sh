#!/usr/bin/env bash
# Make the project's environment, .venv. `make` calls this before every target that needs it; it returns at
# once if nothing changed.
#
# Input: PYTHON (optional, the Python to use), CUDA (optional, 12 for older drivers and GPUs, 13 for others;
# default: as in the last set-up, at first 13), the locks beside this file, pyproject.toml. Output: .venv; its
# stamp .installed is written last. Everything is pinned by version and hash.
# 1. uv: an installed one if it is new enough, else the one of bootstrap.lock, brought to .uv by any Python
#    from 3.8 on. .uv/bin/uv is the one that is used.
# 2. Python: the one named by PYTHON, else one that uv finds, else one that uv downloads to .uv.
# 3. Packages: uv installs requirements.lock or cuda12.lock, and builds the few packages without a wheel with
#    its setuptools.
# No root is needed. Package indices and proxies are those configured for pip and uv.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.installed       # what is installed
unfinished=$venv/.installing # exists during an installation, and after one that did not finish
allowed="3.12 3.13 3.11 3.14" # in the order of preference; the first one is downloaded if there is none
oldest_uv=0.13               # as in bootstrap.in
# Measured on 2026-11-29 with Python 3.12 on x86-64, in MB: wheels to download, .venv, and what uv needs
# beside them meanwhile. On one file system, .venv and uv's cache share their files.
download_mb=3400 venv_mb=6900 spare_mb=1500 bytecode_mb=450
lock=envs/requirements.lock

say() { printf 'setup: %s\n' "$*"; }
fail() {
    say "$@" >&2
    exit 1
}
gigabytes() { printf '%d.%d GB' $(($1 / 1000)) $(($1 % 1000 / 100)); }

cuda=${CUDA:-$(cat $venv/.cuda 2>/dev/null || echo 13)}
case $cuda in
    12) lock=envs/cuda12.lock download_mb=4800 venv_mb=8700 ;;
    13) ;;
    *) fail "CUDA=$cuda: allowed: 12, for older drivers and GPUs, or 13" ;;
esac

# If `make` runs twice at the same time, the second waits for the first.
if command -v flock >/dev/null; then
    exec 9<envs/requirements.lock
    flock 9 || true
fi

# Everything that determines the contents of .venv. `where` is included because an environment cannot be
# moved.
wanted_state() {
    "$1" - $lock <<'EOF'
import hashlib, json, os, sys, tomllib

def digest(content):
    return hashlib.sha256(content).hexdigest()

with open("pyproject.toml", "rb") as stream:
    project = tomllib.load(stream)
install = [project["build-system"], project["project"], project["tool"].get("setuptools")]
print(digest(json.dumps(install).encode()), "pyproject.toml")
with open(sys.argv[1], "rb") as stream:
    print(digest(stream.read()), sys.argv[1])
print("where", os.getcwd())
EOF
}

full_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
minor_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
# Whether version $1 is at least $2, by the first two numbers of each.
at_least() {
    local -a has=(${1//./ }) needs=(${2//./ })
    ((has[0] > needs[0] || (has[0] == needs[0] && has[1] >= needs[1])))
}

if [[ -e $stamp && ! -e $unfinished && "$(wanted_state $venv/bin/python 2>/dev/null)" == "$(<$stamp)" ]] &&
    [[ -z ${PYTHON:-} || "$(minor_version "$PYTHON")" == "$(minor_version $venv/bin/python)" ]]; then
    exit 0
fi

# A Python that PYTHON names must fit, before anything is downloaded.
if [[ -n ${PYTHON:-} ]]; then
    named=$(command -v "$PYTHON") || fail "PYTHON=$PYTHON: no such program; 3.11 to 3.14 is needed"
    version=$(full_version "$named") || fail "PYTHON=$PYTHON: does not run; 3.11 to 3.14 is needed"
    [[ " $allowed " == *" ${version%.*} "* ]] || fail "PYTHON=$PYTHON: is $version; 3.11 to 3.14 is needed"
fi

# Set `uv`. A name on PATH may be a broken shim, so each is tried.
find_uv() {
    local candidate version name tried=()
    while read -r candidate; do
        [[ $candidate == "$PWD/$venv/"* || $candidate == "$PWD/.uv/"* ]] && continue
        version=$("$candidate" --version 2>/dev/null) || continue
        version=${version#uv } version=${version%% *}
        if at_least "$version" $oldest_uv; then
            uv=$candidate
            return
        fi
        tried+=("$candidate: is $version, older than $oldest_uv")
    done < <(type -aP uv || true; echo "${HOME:-}/.local/bin/uv")  # where uv's installer puts it
    uv=$PWD/.uv/bin/uv
    [[ "$("$uv" --version 2>/dev/null)" == "uv $locked_uv"* ]] && return
    for name in ${PYTHON:-} python3 python3.{14,13,12,11,10,9,8} python; do
        while read -r candidate; do
            [[ $candidate == "$PWD/$venv/"* ]] && continue
            if ! version=$(full_version "$candidate"); then
                tried+=("$candidate: does not run")
            elif ! at_least "$version" 3.8; then
                tried+=("$candidate: is $version")
            else
                bring_uv "$candidate"
                return
            fi
        done < <(type -aP "$name")
    done
    if ((${#tried[@]})); then printf '  %s\n' "${tried[@]}" >&2; fi
    say "neither uv $oldest_uv nor a Python from 3.8 on is here. This brings uv; then run make again:" >&2
    echo "  curl -LsSf https://astral.sh/uv/install.sh | sh" >&2
    exit 1
}

# Install the uv of bootstrap.lock to .uv with a Python: with its pip, which knows the user's index, or, where
# it has none, with its standard library alone.
bring_uv() {
    say "uv $locked_uv (24 MB) to .uv with $1"
    rm -rf .uv/part
    mkdir -p .uv/part
    if "$1" -m pip --version >/dev/null 2>&1; then
        "$1" -m pip install -qq --disable-pip-version-check --no-cache-dir --only-binary :all: \
            --require-hashes --target .uv/part -r envs/bootstrap.lock || fail "installing uv $again"
    else
        "$1" envs/fetch_uv.py .uv/part/bin || fail "installing uv $again"
    fi
    mkdir -p .uv/bin
    mv .uv/part/bin/uv .uv/bin/uv
    rm -rf .uv/part
}

# Set `python`, for the environment.
find_python() {
    local version
    if [[ -n ${PYTHON:-} ]]; then
        python=$named
        return
    fi
    for version in $allowed; do
        python=$(look_for "$version") && return
    done
    version=${allowed%% *}
    say "no Python 3.11 to 3.14 here; uv downloads Python $version (35 MB) to .uv"
    export UV_PYTHON_INSTALL_DIR=${UV_PYTHON_INSTALL_DIR:-$PWD/.uv/python}
    "$uv" python install --no-bin "$version" && python=$(look_for "$version") && return
    say "Python $version could not be downloaded, see above. Install it (Debian, Ubuntu: python$version)," >&2
    fail "name one (make PYTHON=/path/to/python$version), or name a mirror (UV_PYTHON_INSTALL_MIRROR)"
}
look_for() { "$uv" python find --no-project --system --no-python-downloads "cpython@$1" 2>/dev/null; }

free_mb() {
    local line
    mkdir -p "$1"
    line=$(df -Pk "$1" | tail -n 1)
    read -r _ _ _ line _ <<<"$line"
    echo $((line * 1024 / 1000000))
}
written() {
    local line
    line=$(du -sck "$cache" $venv 2>/dev/null | tail -n 1)
    echo $((${line%%[[:space:]]*} * 1024 / 1000000))
}
file_system() {
    local line
    line=$(df -P "$1" | tail -n 1)
    echo "${line%% *}"
}

# Say what the installation needs and end it if a file system has less.
check_space() {
    local missing cache_mb=0 own_mb=$bytecode_mb
    missing=$("${pip[@]}" sync --dry-run "${locked[@]}" 2>&1 | grep -oE 'Would download [0-9]+') || missing=""
    missing=${missing#Would download } missing=${missing:-0}
    # with most packages in the cache, only what is certain is asked for
    ((missing == 0)) || cache_mb=$spare_mb
    ((missing * 2 < packages)) || cache_mb=$((venv_mb + spare_mb))
    say "$missing of $packages packages to download (all: $(gigabytes $download_mb));" \
        "$venv will have $(gigabytes $((venv_mb + own_mb))) on disk"
    if [[ "$(file_system "$cache")" == "$(file_system $venv)" ]]; then
        need_space . $((cache_mb + own_mb))
    else
        need_space "$cache" $cache_mb
        need_space . $((venv_mb + own_mb))
    fi
}
need_space() {
    local free
    free=$(free_mb "$1")
    ((free >= $2)) || fail "$(cd "$1" && pwd): $(gigabytes "$free") free, $(gigabytes "$2") needed;" \
        "free some, or move uv's cache (UV_CACHE_DIR=/other/disk) or the clone"
}

# Make .venv from scratch if it is missing, broken, moved, of another Python than the requested one, or half
# installed.
reason=""
if [[ ! -e $venv ]]; then
    reason="new"
elif [[ -e $unfinished ]]; then
    reason="made again: its installation did not finish"
elif ! $venv/bin/python -c '' >/dev/null 2>&1; then
    reason="made again: it does not work"
elif [[ -e $stamp ]] && ! grep -qxF "where $PWD" $stamp; then
    reason="made again: the folder was moved"
elif [[ -n ${PYTHON:-} && "$(minor_version "$PYTHON")" != "$(minor_version $venv/bin/python)" ]]; then
    reason="made again for PYTHON=$PYTHON"
fi

SECONDS=0
trap 'fail "interrupted; the next make goes on with what is downloaded"' INT TERM
again="failed, see above; the next make goes on with what is downloaded."
again+=" No network? pip and uv take PIP_INDEX_URL, UV_DEFAULT_INDEX and HTTPS_PROXY"
locked_uv=$(grep -oE '^uv==[0-9.]+' envs/bootstrap.lock) locked_uv=${locked_uv#uv==}
find_uv
if [[ $uv != "$PWD/.uv/bin/uv" ]]; then
    mkdir -p .uv/bin
    ln -sf "$uv" .uv/bin/uv
fi
if [[ -n $reason ]]; then
    find_python
    say "environment $venv ($reason) with $python, Python $(full_version "$python")"
    # bin first, so that an interruption does not leave a seemingly complete .venv
    rm -rf "${venv:?}/bin" "$venv"
    mkdir $venv
    touch $unfinished
    "$uv" venv --quiet --no-project --allow-existing --python "$python" $venv ||
        fail "uv could not make the environment, see above"
else
    say "environment $venv: updating it"
    touch $unfinished
fi
rm -f $stamp
echo "$cuda" >$venv/.cuda

pip=(env VIRTUAL_ENV="$PWD/$venv" "$uv" --preview-features build-dependency-hashes pip)
locked=(--require-hashes --require-build-hashes --build-constraints $lock $lock)
packages=$(grep -c '^[a-z0-9].*==' $lock)
cache=$("$uv" cache dir)
check_space

# Report progress as long as this script runs: how much is on the disk, shared files counted once.
(while sleep 30 <&- >&- 2>&- && kill -0 $$; do
    say "... $SECONDS s, $(written) MB in uv's cache and $venv"
done) 9<&- &
ticker=$!
trap 'kill $ticker 2>/dev/null || true' EXIT

# --compile-bytecode compiles once here instead of in every job: containers often forbid Python to store
# bytecode. uv says what it downloads; its list of all packages is left out.
"${pip[@]}" sync --compile-bytecode "${locked[@]}" 2>&1 | { grep --line-buffered -vE '^ [+~-] ' || true; } ||
    fail "installing packages $again"
"${pip[@]}" install --quiet --no-deps --no-build-isolation --editable . || fail "installing augbench $again"

wanted_state $venv/bin/python >$stamp.part
mv $stamp.part $stamp
rm -f $unfinished
say "done in $SECONDS s; next: make help, README.md"
