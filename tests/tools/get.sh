#!/bin/sh
# Prints the path of a program that the tests, the demo or CI use; what is missing is built once, by Go or Cargo, and kept in
# .cache. Nothing is installed on the machine. The first build of a program downloads its modules or crates.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache
# No C is linked, and nothing of the repository around the modules is asked for.
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS-} -buildvcs=false"

usage() {
    echo "usage: $0 helm-v3|helm-v4|kustomize|kube-score|kubernetes-validate|promtool|kubectl|actionlint|mdbook|controlplane|controlplane-oldest|node|source-controller|prometheus-crds|external-secrets-crds" >&2
    exit 2
}

need_go() {
    command -v go >/dev/null && return
    echo "$1 is built by Go, which is missing: install Go 1.26 or later (https://go.dev/dl)" >&2
    case $1 in controlplane*) echo "or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kube-controller-manager" >&2 ;; esac
    exit 1
}

# once PROGRAM COMMAND...: prints PROGRAM, after running COMMAND, which makes PROGRAM.partial, where it is missing.
once() {
    program=$1
    shift
    if [ ! -x "$program" ]; then
        mkdir -p "$cache"
        # Tests run side by side: one builds, the others wait.
        exec 9>"$program.lock"
        flock 9
        if [ ! -x "$program" ]; then
            # Built beside and renamed: an interrupted build leaves nothing that looks finished.
            "$@"
            mv "$program.partial" "$program"
        fi
    fi
    echo "$program"
}

# crate VERSION [FLAG...]: a program of a crate of its name, which the tests do not need. CARGO_TOOLS keeps these elsewhere.
crate() {
    cache=${CARGO_TOOLS:-$cache} version=$1
    shift
    once "$cache/$name-$version" install_crate "$name@$version" "$@"
}

install_crate() {
    echo "building $1: the first time takes about a minute on 2 cores" >&2
    folder=$(mktemp -d "$cache/partial.XXXXXX")
    # Unoptimised: it takes half the time to build and runs for seconds.
    cargo install --quiet --locked --debug --root "$folder" "$@" >&2
    mv "$folder/bin/$name" "$program.partial"
    rm -rf "$folder"
}

# again COMMAND...: runs it up to three times, since go gives up at the first error of the network.
again() {
    "$@" || { sleep 2 && "$@"; } || { sleep 10 && "$@"; }
}

# folder_of MODULE@VERSION: prints the folder of a Go module, which is downloaded if it is missing.
folder_of() {
    need_go "$name"
    found=$(again go mod download -json "$1" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')
    [ -n "$found" ] || { echo "$1 could not be downloaded" >&2; exit 1; }
    echo "$found"
}

# published PACKAGE VERSION: a program whose module can be built by its version alone.
published() {
    [ -x "$cache/$name-$2" ] || need_go "$name"
    once "$cache/$name-$2" install_published "$1@$2"
}

install_published() {
    echo "building $name ($1): the first time takes about 2 minutes on 2 cores" >&2
    folder=$(mktemp -d "$cache/partial.XXXXXX")
    GOBIN=$folder again go install -trimpath "$1" >&2
    mv "$folder"/* "$program.partial"
    rmdir "$folder"
}

# python VERSION: a program of a Python package of its name, in an environment of its own.
python() {
    once "$cache/$name-$1" install_python "$name==$1"
}

install_python() {
    echo "installing $1: this is done once and takes about half a minute" >&2
    # What an interrupted installation left behind would be taken for the whole.
    rm -rf "$program.venv"
    python3 -m venv "$program.venv" >&2 || { echo "$name needs Python 3 with venv (on Debian: apt-get install python3-venv)" >&2; exit 1; }
    "$program.venv/bin/pip" install --quiet --disable-pip-version-check --no-input "$1" >&2
    ln -sf "$program.venv/bin/$name" "$program.partial"
}

# module FOLDER PACKAGE VERSION [FLAG...]: a program of a Go module below tests/, built again when the module changes.
module() {
    folder=$root/tests/$1 package=$2 version=$3
    shift 3
    sources=$(for file in main.go go.mod go.sum; do [ ! -f "$folder/$file" ] || cat "$folder/$file"; done | sha256sum)
    digest=$(echo "$sources" | cut -c1-12)
    [ -x "$cache/$name-$version-$digest" ] || need_go "$name"
    once "$cache/$name-$version-$digest" build_module "$@"
}

build_module() {
    log=$program.log
    echo "building $name $version: looking at its modules" >&2
    total=$(cd "$folder" && again go list -deps "$@" "$package" | wc -l)
    : >"$log"
    # -v names each package that is compiled, which is how the progress is known.
    (cd "$folder" && exec go build -v -trimpath -ldflags "$link" -o "$program.partial" "$@" "$package") >"$log" 2>&1 &
    build=$!
    # Who is interrupted does not leave the build running.
    trap 'kill "$build" 2>/dev/null' INT TERM HUP
    seconds=0
    while kill -0 "$build" 2>/dev/null; do
        if [ $((seconds % 15)) -eq 0 ]; then
            compiled=$(wc -l <"$log")
            # Go names what it compiles, not what it takes from its build cache.
            if [ "$compiled" -eq 0 ]; then
                progress="no package compiled yet (those in Go's build cache are reused)"
            else
                progress="$compiled packages compiled, of $total at most"
            fi
            printf 'building %s %s: %s, %dm%02ds so far\n' "$name" "$version" "$progress" \
                $((seconds / 60)) $((seconds % 60)) >&2
        fi
        sleep 1
        seconds=$((seconds + 1))
    done
    wait "$build" || { tail -n 30 "$log" >&2; echo "building $name failed; the whole log is $log" >&2; exit 1; }
}

# required MODULE GO-MOD: the version that a go.mod requires of a module.
required() {
    sed -n "s|^\(require\)\{0,1\}[[:space:]]*$1 \(v[^ ]*\).*|\2|p" "$root/tests/$2/go.mod" | head -1
}

# stamp VERSION: the link flags without which kubectl and helm cannot parse a server's version.
stamp() {
    rest=${1#v}
    major=${rest%%.*} rest=${rest#*.}
    path=k8s.io/component-base/version
    link="-s -w -X $path.gitVersion=$1 -X $path.gitMajor=$major -X $path.gitMinor=${rest%%.*}"
}

name=${1-}
link="-s -w"
case $name in
helm-v3) published helm.sh/helm/v3/cmd/helm v3.22.0 ;;
helm-v4) published helm.sh/helm/v4/cmd/helm v4.3.1 ;;
# Older than ValidatingAdmissionPolicies, as users of older kubectls have it.
kustomize) published sigs.k8s.io/kustomize/kustomize/v5 v5.0.3 ;;
kube-score) published github.com/zegl/kube-score/cmd/kube-score v1.20.0 ;;
kubernetes-validate) python 1.37.0 ;;
actionlint) published github.com/rhysd/actionlint/cmd/actionlint v1.7.12 ;;
cargo-deny) crate 0.20.2 ;;
cargo-machete) crate 0.9.2 ;;
cargo-mutants) crate 27.1.0 ;;
# Without what `mdbook serve` takes: it renders the book, with its search.
mdbook) crate 0.5.4 --no-default-features --features search ;;
promtool)
    # The machine's own is as good: the alerts use nothing new.
    command -v promtool && exit
    package=github.com/prometheus/prometheus
    # No service discovery: it takes the SDKs of all clouds, and alerts need none.
    module tools/promtool $package/cmd/promtool "$(required $package tools/promtool)" -tags=remove_all_sd
    ;;
kubectl)
    command -v kubectl && exit
    version=$(required k8s.io/kubectl tools/kubectl)
    stamp "v1.${version#v0.}"
    module tools/kubectl . "v1.${version#v0.}"
    ;;
controlplane* | node)
    [ -f "$root/tests/$name/go.mod" ] || { echo "tests/$name is no Go module" >&2; exit 2; }
    version=$(required k8s.io/kubernetes "$name")
    stamp "$version"
    module "$name" . "$version"
    ;;
source-controller)
    package=github.com/fluxcd/source-controller
    module consumers/flux $package "$(required $package consumers/flux)"
    ;;
prometheus-crds)
    # The folder with the Prometheus Operator's CustomResourceDefinitions, which its Go module holds.
    dir=$(folder_of github.com/prometheus-operator/prometheus-operator@v0.85.0)
    echo "$dir/example/prometheus-operator-crd"
    ;;
external-secrets-crds)
    # The same of external-secrets.
    dir=$(folder_of github.com/external-secrets/external-secrets@v1.3.2)
    echo "$dir/config/crds/bases"
    ;;
*) usage ;;
esac
