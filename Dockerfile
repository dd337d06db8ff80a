# Needs BuildKit, for the caches of the registry and of compiled dependencies.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The caches don't become part of the image, so the binary leaves them in the same step.
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

# Loopback, the default, can't be reached from outside of a container. This stands above a
# configuration file's server.bind.
ENV PROGRESS_HUB__SERVER__BIND=0.0.0.0:8080
EXPOSE 8080

# Alive, not ready: a store that is away is no reason to restart the hub. With TLS or on another
# port, give a health check of your own.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /v1/health/live HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]

ENTRYPOINT ["progress-hub"]
CMD ["serve"]
