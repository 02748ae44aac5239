# syntax=docker/dockerfile:1
# The operator's image for linux/amd64 and linux/arm64; CONTRIBUTING.md has the command that builds both.
# Each platform is compiled on itself, natively or under emulation, so nothing here depends on the architecture.

# Base images by digest, so that the same commit gives the same bytes. Renovate updates both. To pin another one, take the digest of
# the index of all platforms, which this prints: docker buildx imagetools inspect rust:1.95-trixie
# Debian 13 in both: the program needs a C library at least as new as the one that it is linked to.
ARG BUILD_IMAGE=rust:1.95-trixie@sha256:f49565f188ee00bc2a18dd418183f2c5f23ef7d6e691890517ed341a598f67c3
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot@sha256:54df941ed0d06a1bd95ef5e0ce391fd8d9f94b64782dc9a60062727849ee3f97

# aws-lc is compiled from C by the compiler that the image has; it needs neither cmake nor clang.
FROM $BUILD_IMAGE AS build
ARG TARGETARCH
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
# Cargo reads the manifests of all workspace members. Their source is not needed.
COPY tests/fuzz/Cargo.toml tests/fuzz/Cargo.toml
COPY tests/hostile/Cargo.toml tests/hostile/Cargo.toml
COPY tests/judge/Cargo.toml tests/judge/Cargo.toml
COPY tests/sim/Cargo.toml tests/sim/Cargo.toml
COPY tests/testbed/Cargo.toml tests/testbed/Cargo.toml
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target,id=target-$TARGETARCH \
    cargo build --release --locked --package ecr-credential-operator --bin ecr-credential-operator && \
    install -D target/release/ecr-credential-operator /out/ecr-credential-operator

# The C library, the certificates of public authorities, and a user without privileges.
FROM $RUNTIME_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=https://github.com/pullsecrets/ecr-credential-operator
LABEL org.opencontainers.image.title=ecr-credential-operator \
      org.opencontainers.image.description="Keeps Amazon ECR pull secrets fresh" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=$SOURCE \
      org.opencontainers.image.licenses=Apache-2.0
# The permissions of a checkout depend on the umask.
COPY --chmod=0644 LICENSE THIRD_PARTY_NOTICES.txt /
COPY --from=build /out/ecr-credential-operator /usr/local/bin/ecr-credential-operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/ecr-credential-operator"]
CMD ["run"]
