#!/usr/bin/env bash
# Tests the consumers' own code against Secrets as the operator writes them. Each folder is a Go module, so that the versions of one
# consumer's dependencies bind no other.
set -euo pipefail
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "go is missing: install Go 1.26 or later"; exit 1; }

# No C is linked, and nothing of the repository around the modules is asked for. skopeo's library would link gpgme.
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS-} -buildvcs=false -trimpath -tags=containers_image_openpgp"
# Built here: go gives the tests of a package ten minutes, in which nothing is to be downloaded.
sh ../tools/get.sh source-controller >/dev/null
failed=0
for module in ${*:-clients flux argocd grafana}; do
  # The first build takes minutes, and go says nothing until it ends.
  echo "$module: building and testing"
  # Go keeps results, and does not see that secrets.json or a page of docs/ has changed.
  (cd "$module" && go test -count=1 ./...) || failed=1
done
exit "$failed"
