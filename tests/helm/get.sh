#!/bin/sh
# Prints the path of what the chart's tests need: `v3` or `v4` is that helm, built once by Go and kept in .cache;
# `prometheus-crds` is the folder with the Prometheus Operator's CustomResourceDefinitions, from its Go module.
set -eu
cache=$(cd "$(dirname "$0")/../.." && pwd)/.cache/helm
operator=github.com/prometheus-operator/prometheus-operator@v0.85.0

case ${1-} in
v3) version=v3.22.0 package=helm.sh/helm/v3/cmd/helm ;;
v4) version=v4.3.1 package=helm.sh/helm/v4/cmd/helm ;;
prometheus-crds)
    dir=$(go mod download -json "$operator" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')
    echo "$dir/example/prometheus-operator-crd"
    exit
    ;;
*)
    echo "usage: $0 v3|v4|prometheus-crds" >&2
    exit 2
    ;;
esac

program=$cache/$version/helm
if [ ! -x "$program" ]; then
    mkdir -p "$cache/$version"
    # Tests run side by side: one builds, the others wait.
    exec 9>"$cache/$version.lock"
    flock 9
    if [ ! -x "$program" ]; then
        echo "building helm $version, the first time takes about 2 minutes" >&2
        # Installed beside and renamed, so that an interrupted build leaves nothing that looks finished.
        GOBIN=$cache/$version/partial CGO_ENABLED=0 go install -trimpath "$package@$version" >&2
        mv "$cache/$version/partial/helm" "$program"
    fi
fi
echo "$program"
