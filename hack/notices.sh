#!/bin/sh
# Writes THIRD_PARTY_NOTICES.txt, which the image contains: every crate that the program is made of, with its license.
#
#   hack/notices.sh           writes the file
#   hack/notices.sh --check   fails if the file is not current
#
# The license texts are those in the crates. Where a crate has none, it is the text that SPDX publishes. Nothing is downloaded but the
# crates themselves.
set -eu
cd "$(dirname "$0")/.."

file=THIRD_PARTY_NOTICES.txt
about=$(sh tests/tools/get.sh cargo-about)
mkdir -p target
"$about" generate --locked --offline --fail --config about.toml --output-file "target/$file" hack/notices.hbs

case ${1-} in
"") mv "target/$file" "$file" ;;
--check)
    cmp -s "target/$file" "$file" || {
        diff "$file" "target/$file" | head -n 20
        echo "$file is not current: run 'make notices' and commit what it changes" >&2
        exit 1
    }
    ;;
*) sed -n '4,5s/^#   //p' "$0" >&2; exit 2 ;;
esac
