# Requires BuildKit: the build caches the registry and the compiled dependencies.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# Cache mounts are not part of the image, so the same step copies the binary out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin progress-hub \
    && install -D --strip target/release/progress-hub /out/progress-hub

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 hub \
    && useradd --uid 10001 --gid hub --home-dir /var/lib/progress-hub --create-home \
        --shell /usr/sbin/nologin hub
COPY --from=build /out/progress-hub /usr/local/bin/progress-hub

USER 10001:10001
# The default store, sqlite://progress-hub.db, is a file in the working directory.
WORKDIR /var/lib/progress-hub
VOLUME /var/lib/progress-hub

# The default address, loopback, is not reachable from outside the container. This variable
# overrides server.bind of a configuration file.
ENV PROGRESS_HUB__SERVER__BIND=0.0.0.0:8080
EXPOSE 8080

# Checks liveness, not readiness: restarting the hub does not help if the store is unavailable.
# Override this health check if the hub uses TLS or another port.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /v1/health/live HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]

ENTRYPOINT ["progress-hub"]
CMD ["serve"]
