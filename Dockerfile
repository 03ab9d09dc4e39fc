# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies alone, in a layer that stays cached until Cargo.lock or Cargo.toml changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY migrations migrations
COPY src src
# The stand-ins above are newer than what was just copied, as cargo sees it.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked


FROM debian:bookworm-slim
# For upstreams over https.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin spell \
    && install -d -o spell -g spell -m 750 /data
COPY --from=build /build/target/release/spell-platform /usr/local/bin/spell-platform

USER spell
WORKDIR /data
VOLUME /data
ENV HOST=0.0.0.0 PORT=8080 DATABASE_URL=sqlite:/data/spell-platform.db
EXPOSE 8080
STOPSIGNAL SIGTERM
# The image has no curl; bash opens the connection itself.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/$PORT && printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["/usr/local/bin/spell-platform"]
