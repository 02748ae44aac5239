#!/bin/sh
# Builds the book of docs/ into target/book, and follows all its links but those to other sites.
set -eu
cd "$(dirname "$0")/.."

mdbook=$(sh tests/tools/get.sh mdbook)
rm -rf target/book
"$mdbook" build docs
python3 hack/book.py check target/book
echo "open target/book/index.html"
