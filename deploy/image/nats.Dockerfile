# nats-server on top of the image of the roles, whose program asks it for its health. From the repository's root:
#
#   docker build -f deploy/image/nats.Dockerfile -t vlinders-nats:latest .
ARG VLINDERS=vlinders:latest
FROM nats:2.12 AS nats
FROM ${VLINDERS} AS roles
FROM roles
COPY --from=nats /nats-server /usr/bin/nats-server
COPY deploy/nats/*.conf /etc/nats/
# An empty directory of the user's own.
COPY --from=roles --chown=65532:65532 /var/lib/vlinders/ /data/
WORKDIR /data
EXPOSE 4222 6222 8222
HEALTHCHECK --interval=3s --timeout=4s --start-period=60s --retries=3 \
    CMD ["/usr/bin/vlinders", "health", "--url", "http://127.0.0.1:8222/healthz"]
ENTRYPOINT ["/usr/bin/nats-server"]
CMD ["-c", "/etc/nats/nats.conf"]
