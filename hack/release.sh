#!/bin/sh
# Parts of a release that need no registry, so that they can be tried on any machine. RELEASING.md has the steps.
#
#   hack/release.sh check VERSION        fails unless Cargo.toml, the charts and the changelog have this version
#   hack/release.sh notes VERSION        prints the section of the changelog
#   hack/release.sh charts OWNER FOLDER  packages both charts into FOLDER, with the image and the sources of OWNER
#   hack/release.sh manifests OWNER FOLDER  renders deploy/ into FOLDER, with the image of OWNER, and adds the CustomResourceDefinition
set -eu
cd "$(dirname "$0")/.."

charts="ecr-credential-operator ecr-credential-operator-crds"

fail() {
    echo "release.sh: $*" >&2
    exit 1
}

# The default owner stands in the name of the image, in links and in metadata.
owned_by() {
    sed -e "s|github.com/pullsecrets/ecr-credential-operator|github.com/$1/ecr-credential-operator|g" \
        -e "s|ghcr.io/pullsecrets/|ghcr.io/$1/|g" \
        -e "s|repository: pullsecrets/ecr-credential-operator|repository: $1/ecr-credential-operator|"
}

# The section of one version, without its heading.
notes() {
    awk -v version="$1" '/^## / { wanted = ($2 == version || $2 == "[" version "]"); next } wanted' CHANGELOG.md
}

check() {
    crate=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    [ "$crate" = "$1" ] || fail "Cargo.toml has the version $crate, not $1"
    for chart in $charts; do
        for key in version appVersion; do
            found=$(sed -n "s/^$key: \"*\([^\"]*\)\"*$/\1/p" "charts/$chart/Chart.yaml")
            [ "$found" = "$1" ] || fail "charts/$chart/Chart.yaml has the $key $found, not $1"
        done
    done
    grep -q "ecr-credential-operator:$1\$" charts/ecr-credential-operator/Chart.yaml ||
        fail "artifacthub.io/images in charts/ecr-credential-operator/Chart.yaml has another version than $1"
    [ -n "$(notes "$1" | tr -d '[:space:]')" ] || fail "CHANGELOG.md has no section $1"
}

package() {
    owner=$1 folder=$2
    mkdir -p "$folder"
    copy=$(mktemp -d)
    for chart in $charts; do
        cp -R "charts/$chart" "$copy/$chart"
        find "$copy/$chart" -type f \( -name '*.yaml' -o -name '*.json' -o -name '*.md' \) | while read -r file; do
            owned_by "$owner" <"$file" >"$file.new"
            mv "$file.new" "$file"
        done
        helm package "$copy/$chart" --destination "$folder"
    done
    rm -rf "$copy"
}

manifests() {
    owner=$1 folder=$2
    mkdir -p "$folder"
    kustomize=$(sh tests/tools/get.sh kustomize)
    "$kustomize" build deploy | owned_by "$owner" >"$folder/ecr-credential-operator.yaml"
    cp crds/ecrcredentials.pullsecrets.dev.yaml "$folder/"
}

case "${1-} $#" in
"check 2") check "$2" ;;
"notes 2") notes "$2" ;;
"charts 3") package "$2" "$3" ;;
"manifests 3") manifests "$2" "$3" ;;
*) sed -n '4,7s/^#   //p' "$0" >&2; exit 2 ;;
esac
