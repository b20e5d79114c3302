# syntax=docker/dockerfile:1
# berth in a container, for machines without Linux and for servers. The image's
# own system is what its sandboxes see, read-only, so it holds the tools that
# agents want.
#
#   docker build -t berth .
#   docker run -d --name berth -p 127.0.0.1:8080:8080 -v berth-state:/var/lib/berth \
#       --security-opt seccomp=unconfined --security-opt systempaths=unconfined berth
#
# The two options let berth make user namespaces and mount /proc in them; with
# them the sandboxes' own walls (namespaces, seccomp, bounded capabilities) hold.
# Where AppArmor is in force, add --security-opt apparmor=unconfined. berth runs
# as an ordinary user in here and needs no --privileged. The state must be on a
# volume: it cannot lie on the container's own overlay.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=container
RUN go generate ./sandbox/local/boxbin ./mounts/bucketbin && \
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /berth .

# Debian's newuidmap is set-user-id root, and as such lacks CAP_SYS_ADMIN in a
# container; with its one capability it maps ids as the owner of the namespace.
FROM debian:bookworm-slim
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates curl git libcap2-bin nodejs npm procps python3 python3-pip python3-venv tini uidmap && \
    rm -rf /var/lib/apt/lists/* && \
    chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap && \
    setcap cap_setuid+ep /usr/bin/newuidmap && \
    setcap cap_setgid+ep /usr/bin/newgidmap && \
    useradd --create-home --uid 1000 berth && \
    printf 'berth:100000:65536\n' | tee /etc/subuid >/etc/subgid && \
    install -d -o berth -g berth -m 700 /var/lib/berth
COPY --from=build /berth /usr/local/bin/berth
# A token is made at the first start over HTTP when BERTH_TOKEN gives none; it is
# printed once (docker logs) and kept in the volume.
ENV BERTH_STATE=/var/lib/berth BERTH_AUTH_GENERATE=true
USER berth
WORKDIR /home/berth
VOLUME /var/lib/berth
EXPOSE 8080
# Fits both: it asks the server that listens, and with none, as when clients run
# "docker exec -i berth berth serve", whether sandboxes can be made.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["berth", "healthcheck"]
# Sandboxes outlive the server that made them, also one of docker exec; tini, as
# the first process, takes note of their ends.
ENTRYPOINT ["tini", "--", "berth"]
CMD ["serve", "--http", "0.0.0.0:8080"]
