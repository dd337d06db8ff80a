# Requires BuildKit. To pin the base images, pass them with a digest:
# --build-arg RUNTIME_IMAGE=gcr.io/distroless/cc-debian12@sha256:…
ARG BUILD_IMAGE=rust:1-bookworm
# The C library, libgcc and CA certificates. It has no shell and no package manager.
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12

FROM ${BUILD_IMAGE} AS tools
# cargo-auditable stores the list of crates in the binary. Vulnerability scanners and SBOM generators
# read it.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked --version 0.7.7 cargo-auditable
WORKDIR /src

# Keeps the manifests and replaces the sources with empty ones, so that the layer with the compiled
# dependencies below depends on the manifests only. The crate redis-protocol keeps its sources, because
# the dependency fred uses it.
FROM tools AS manifests
COPY . .
RUN find . -type f ! -path './.cargo/*' ! -name 'Cargo.*' ! -name lib.rs ! -name main.rs ! -path './benches/*.rs' \
        ! -path './crates/redis-protocol/*' -delete \
    && find . -name '*.rs' ! -path './crates/redis-protocol/*' | while read -r file; do echo 'fn main() {}' >"$file"; done \
    && find . -type d -empty -delete

FROM tools AS build
COPY --from=manifests /src .
# Deletes the fingerprints of the empty crates. Cargo compares modification times, and the sources may be
# older than this build.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo auditable build --profile dist --locked --bin progress-hub \
    && rm -r target/dist/.fingerprint/progress-hub*
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo auditable build --profile dist --locked --bin progress-hub \
    && install -D --target-directory=/out/bin target/dist/progress-hub \
    && install -D --mode=644 --target-directory=/out/licenses LICENSE-APACHE LICENSE-MIT \
    && scripts/third-party-licenses >/out/licenses/THIRD-PARTY \
    && install -d --mode=700 /out/lib/progress-hub

FROM ${RUNTIME_IMAGE}
COPY --from=build /out/licenses /usr/share/licenses/progress-hub
COPY --from=build --chown=10001:10001 /out/lib /var/lib
COPY --from=build /out/bin /usr/local/bin

USER 10001:10001
# The default store, sqlite://progress-hub.db, is a file in the working directory.
WORKDIR /var/lib/progress-hub

# The default address, loopback, is not reachable from outside the container. The first variable
# overrides server.bind of a configuration file.
ENV PROGRESS_HUB__SERVER__BIND=0.0.0.0:8080 \
    PROGRESS_HUB_DEMO_PUBLIC=true
EXPOSE 8080

# Checks liveness, not readiness: restarting the hub does not help if the store is unavailable.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["progress-hub", "health"]

ENTRYPOINT ["progress-hub"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="progress-hub" \
      org.opencontainers.image.description="Real-time progress hub for long-running jobs, built for AI video generation" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
