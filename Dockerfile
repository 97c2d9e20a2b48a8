FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY letta_bridge letta_bridge
RUN python -m venv /opt/letta-bridge \
 && /opt/letta-bridge/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.13-slim
# The bridge runs as this user; /data has to belong to it.
RUN groupadd --gid 1337 bridge \
 && useradd --uid 1337 --gid 1337 --home-dir /data --no-create-home --shell /usr/sbin/nologin bridge \
 && install -d -o 1337 -g 1337 -m 0700 /data
COPY --from=build /opt/letta-bridge /opt/letta-bridge
ENV PATH=/opt/letta-bridge/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1337:1337
# config.yaml, registration.yaml and the SQLite database live here. Without config.yaml the bridge ends at once and
# says how to make one: docs/setup.md.
WORKDIR /data
VOLUME /data
EXPOSE 29384
STOPSIGNAL SIGTERM
# Ready means database and homeserver. A Letta that is down is told in the rooms and is no reason for a restart.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
  "import urllib.request; urllib.request.urlopen('http://127.0.0.1:29384/_matrix/mau/ready', timeout=4)"]
ENTRYPOINT ["letta-bridge"]
CMD ["run", "-c", "/data/config.yaml"]
