#!/bin/sh
# Builds the Dockerfile twice with buildah, from two checkouts of HEAD that share no cache, and compares the images byte by byte.
# The base images are stand-ins: Debian packages and the Rust toolchain of this machine. So this needs no registry, and says nothing about
# the bytes of the real base images. PROGRAM=path takes a program that is built already and compiles nothing. Needs root, buildah, mmdebstrap, crates.io and Debian's packages.
set -eu
cd "$(dirname "$0")/.."

fail() {
	echo "$*" >&2
	exit 1
}

# 77 says that it cannot run here, as make e2e does.
missing() {
	echo "the Dockerfile is not built: $*" >&2
	exit 77
}

[ "$(id -u)" = 0 ] || missing "building in a chroot needs root"
command -v buildah >/dev/null || missing "buildah is missing: install it, on Debian with the package buildah"
command -v mmdebstrap >/dev/null || missing "mmdebstrap is missing: install it, on Debian with the package mmdebstrap"
toolchain=$(rustc --print sysroot) || fail "rustc is missing: install Rust with rustup"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/dockerfile-XXXXXX")
# Every mount of a build is below it.
clean() {
	cut -d' ' -f2 /proc/mounts | grep "^$work/" | sort -r | xargs -r -n1 umount || true
	rm -rf --one-file-system -- "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

export BUILDAH_ISOLATION=chroot TMPDIR="$work/tmp"
mkdir "$TMPDIR"
buildah() {
	command buildah --root "$work/storage" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"
}

# Makes an image of a root file system.
stand_in() { # NAME ARCHIVE
	container=$(buildah from scratch)
	buildah add --quiet "$container" "$2" / >/dev/null
	echo "$container"
}

echo "== stand-ins for the base images"
debian=${DEBIAN_SUITE:-trixie}
mmdebstrap --quiet --variant=minbase --include=ca-certificates,gcc,libc6-dev "$debian" "$work/build.tar"
# Files alone, as distroless images are: no shell, no package manager, and no configuration of packages.
mmdebstrap --quiet --variant=extract --include=base-files,ca-certificates,libc6,libgcc-s1 "$debian" "$work/runtime.tar"

build=$(stand_in build "$work/build.tar")
if [ -n "${PROGRAM:-}" ]; then
	# Nothing is compiled: each instruction of the Dockerfile runs, but its cargo only puts the program in place.
	printf '#!/bin/sh\nexec install -D /program target/release/ecr-credential-operator\n' >"$work/cargo"
	chmod 755 "$work/cargo"
	buildah copy --quiet "$build" "$PROGRAM" /program >/dev/null
	buildah copy --quiet "$build" "$work/cargo" /usr/local/bin/cargo >/dev/null
else
	for part in bin lib; do
		buildah copy --quiet "$build" "$toolchain/$part" "/usr/local/$part" >/dev/null
	done
fi
# The authorities of this machine: its way to crates.io may have some of its own.
buildah copy --quiet "$build" "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" /etc/ssl/certs/ca-certificates.crt >/dev/null
# What is under test is the Dockerfile, not the optimizer.
buildah config --env CARGO_HOME=/usr/local/cargo --env CARGO_PROFILE_RELEASE_LTO=off --env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 \
	--env CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 --env CARGO_BUILD_JOBS="${CARGO_BUILD_JOBS:-$(nproc)}" \
	--env CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt "$build"
buildah commit --quiet --rm "$build" localhost/build >/dev/null
runtime=$(stand_in runtime "$work/runtime.tar")
buildah commit --quiet --rm "$runtime" localhost/runtime >/dev/null
rm "$work"/*.tar

epoch=$(git log -1 --format=%ct)
revision=$(git rev-parse HEAD)
for number in 1 2; do
	echo "== build $number"
	# Another checkout, with other permissions and times of its files.
	(umask $([ "$number" = 1 ] && echo 022 || echo 002) && git clone --quiet --no-hardlinks . "$work/checkout")
	find "$work/checkout" -exec touch -d "@$((epoch + number))" {} +
	# The caches of RUN --mount=type=cache are in TMPDIR.
	rm -rf "$TMPDIR" && mkdir "$TMPDIR"
	buildah build --layers=false --no-cache --pull=never --network host --timestamp "$epoch" \
		--build-arg BUILD_IMAGE=localhost/build --build-arg RUNTIME_IMAGE=localhost/runtime \
		--build-arg TARGETARCH="$(dpkg --print-architecture)" --build-arg VERSION=0 --build-arg REVISION="$revision" \
		--tag "localhost/operator:$number" "$work/checkout"
	buildah push --quiet "localhost/operator:$number" "oci:$work/image-$number"
	rm -rf "$work/checkout"
done

echo "== what the image is"
one=$(cat "$work/image-1/index.json")
[ "$one" = "$(cat "$work/image-2/index.json")" ] || {
	for number in 1 2; do
		for blob in "$work/image-$number"/blobs/sha256/*; do
			tar -tvzf "$blob" 2>/dev/null || python3 -m json.tool "$blob"
		done | sort >"$work/$number.txt"
	done
	diff "$work/1.txt" "$work/2.txt" || true
	fail "two builds of the same commit differ"
}
echo "two builds gave the same bytes: $(sha256sum "$work/image-1/index.json")"
user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' localhost/operator:1)
[ "$user" = 65532:65532 ] || fail "the image's user is $user"
container=$(buildah from --pull-never localhost/operator:1)
buildah run "$container" -- /usr/local/bin/ecr-credential-operator --help >"$work/help"
grep -q '^Usage:' "$work/help" || fail "--help says: $(cat "$work/help")"
buildah run "$container" -- /usr/local/bin/ecr-credential-operator --version
if buildah run "$container" -- /bin/sh -c true 2>/dev/null; then
	fail "the image has a shell"
fi
echo "the image runs as $user, says --help, and has no shell"
