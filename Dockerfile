# syntax=docker/dockerfile:1
# The operator's image for linux/amd64 and linux/arm64; CONTRIBUTING.md has the command that builds both.
# Each platform is compiled on itself (natively or under emulation), so nothing here knows an architecture.

# Other images may be given, such as copies in a registry of one's own, or these by digest: the same bytes come of the same images.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM $BUILD_IMAGE AS build
ARG TARGETARCH
# aws-lc-rs is compiled from C.
RUN apt-get update && apt-get install -y --no-install-recommends cmake clang && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
# The tests' workspace members are not built, but Cargo wants to see them.
COPY tests/testbed tests/testbed
COPY tests/fuzz tests/fuzz
COPY tests/hostile tests/hostile
COPY tests/sim tests/sim
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target,id=target-$TARGETARCH \
    cargo build --release --locked --package ecr-credential-operator && \
    install -D target/release/ecr-credential-operator /out/ecr-credential-operator

# The C library, the certificates of public authorities, and a user that is not root: nothing else.
FROM $RUNTIME_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title=ecr-credential-operator \
      org.opencontainers.image.description="Keeps Amazon ECR pull Secrets fresh" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=https://github.com/pullsecrets/ecr-credential-operator \
      org.opencontainers.image.licenses=Apache-2.0
COPY LICENSE /LICENSE
COPY --from=build /out/ecr-credential-operator /usr/local/bin/ecr-credential-operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/ecr-credential-operator"]
CMD ["run"]
