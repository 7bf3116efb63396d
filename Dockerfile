# One image for every host: Debian, Python 3.11, the locked wheels, Mesa and Xvfb for pictures without a display.
#
#   ./invoke image                    builds it; plain `docker build .` works too
#   --build-arg TORCH_VARIANT=cuda12  for hosts with an NVIDIA driver from 525 on, below 580
#   --build-arg TORCH_VARIANT=cpu     for hosts without an NVIDIA GPU (torch's CPU wheel is not on PyPI: see `wheels`)
#   --build-context wheels=DIR        a folder with wheels that pip's index does not have
#   --secret id=pip_conf,src=FILE     pip's settings while building (index, proxy); --secret id=ca_bundle,src=FILE its
#                                     certificates. Neither leaves a trace in the image or its history.
#   --build-arg DEBIAN_SNAPSHOT=URL   a dated Debian archive: every system package is then of that day
#
# Reproducible: what a build writes gets one fixed time, byte code carries none, logs and caches stay out. So two builds
# from the same packages have the same layers, and `./invoke image --verify` can compare them.

ARG BASE_IMAGE=debian:bookworm-slim

FROM scratch AS wheels

# ---------------------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS system
ARG DEBIAN_SNAPSHOT=
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# A dated archive's Release files have expired by design, hence check-valid-until. Left out of the packages, 70 MB in all:
# manuals and translations (as in Debian's own slim images; licences stay), and GCC's tool for looking into its LTO files.
# hadolint ignore=DL3008,DL3009
RUN --mount=type=bind,source=docker/build,target=/srv \
    touch /tmp/start; \
    if [[ -n $DEBIAN_SNAPSHOT ]]; then \
        rm -f /etc/apt/sources.list.d/*; \
        printf 'deb [check-valid-until=no] %s bookworm main\n' "$DEBIAN_SNAPSHOT" >/etc/apt/sources.list; \
    fi; \
    apt-get update -qq; \
    grep -o '^[a-z0-9][^ #]*' /srv/apt-packages.txt >/tmp/packages; \
    DEBIAN_FRONTEND=noninteractive xargs -a /tmp/packages apt-get install -y -qq --no-install-recommends \
        -o DPkg::Options::=--path-exclude='/usr/share/doc/*' -o DPkg::Options::=--path-include='/usr/share/doc/*/copyright' \
        -o DPkg::Options::=--path-exclude='/usr/share/man/*' -o DPkg::Options::=--path-exclude='/usr/share/locale/*' \
        -o DPkg::Options::=--path-exclude='/usr/bin/*-lto-dump-*' >/tmp/apt.log 2>&1 \
        || { tail -n 20 /tmp/apt.log >&2; exit 1; }; \
    # The user of a plain `docker run`; compose gives the host's own uid. Any uid may write to the home, the caches and the
    # results that nobody mounted.
    SOURCE_DATE_EPOCH=946684800 useradd --uid 1000 --no-create-home --home-dir /var/lib/mapanything --shell /bin/bash mapanything; \
    install -d -m 1777 /var/lib/mapanything /cache /workspace/experiments /workspace/checkpoints /workspace/visualization_outputs; \
    install -d /workspace/data/opv2v_images /workspace/data/opv2v_depth; \
    # What the base image has is emptied, not removed: the mark of a removed file carries the time of its removal.
    rm /tmp/packages /tmp/apt.log; \
    find /var/lib/apt/lists /var/cache/apt /var/cache/ldconfig -type f -cnewer /tmp/start ! -name lock -delete; \
    find /var/log -type f -cnewer /tmp/start -exec truncate --size=0 {} +; \
    bash /srv/set-times / /tmp/start; \
    rm /tmp/start; \
    touch --date=2000-01-01T00:00:00Z /tmp

# ---------------------------------------------------------------------------------------------------------------------
FROM system AS environment
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG TORCH_VARIANT=cuda
# Read by pip. Their values stay in this stage; for anything secret take the secret pip_conf.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3008
RUN apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
WORKDIR /opt/mapanything
COPY invoke ./
COPY requirements/cpu.txt requirements/cuda12.txt requirements/cuda13.txt requirements/
# The host's own bootstrap makes the environment, so that host and image install in one way.
# Byte code without times; "unchecked": nothing in the image changes, so there is nothing to look up at every import.
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle \
    --mount=type=cache,target=/var/cache/pip,sharing=locked \
    --mount=type=bind,source=docker/build,target=/srv \
    export PIP_CACHE_DIR=/var/cache/pip PIP_FIND_LINKS=/wheels PIP_NO_COMPILE=0 MAPANYTHING_TORCH=$TORCH_VARIANT; \
    if test -s /run/secrets/pip_conf; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
    if test -s /run/secrets/ca_bundle; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    ./invoke --version; \
    echo /workspace >.venv/lib/python3.11/site-packages/mapanything-repository.pth; \
    .venv/bin/python -m pip --python .venv/bin/python uninstall --quiet --yes pip; \
    # For the stage dev, which has none.
    python3 -m venv /opt/pip; \
    find .venv -name __pycache__ -prune -exec rm -rf {} +; \
    # torch's own C++ tests and protobuf's compiler: 140 MB that nothing here runs.
    rm -rf .venv/lib/python3.11/site-packages/torch/test; \
    find .venv/lib/python3.11/site-packages/torch/bin \( -iname '*test*' -o -name 'protoc*' \) -delete; \
    # The packages' own tests, source maps of their web pages, and Open3D's operators for TensorFlow: 110 MB more.
    find .venv/lib/python3.11/site-packages -type d -name tests -prune -exec rm -rf {} +; \
    find .venv/lib/python3.11/site-packages -name '*.js.map' -delete; \
    rm .venv/lib/python3.11/site-packages/open3d/open3d_tf_ops.so; \
    # Some packages carry files for newer Pythons, which do not compile: not an error.
    PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 .venv/bin/python -m compileall -f -q -j 0 --invalidation-mode unchecked-hash -x '/tests?/' .venv || true; \
    install -d /out/opt/mapanything; \
    mv .venv /out/opt/mapanything/; \
    bash /srv/set-times /out

# ---------------------------------------------------------------------------------------------------------------------
FROM system AS sources
WORKDIR /out/workspace
COPY . .
# Modes as git knows them, whatever umask the clone was made with.
RUN --mount=type=bind,source=docker/build,target=/srv \
    chmod -R u=rwX,go=rX .; \
    install -D -m 755 docker/entrypoint /out/usr/local/bin/entrypoint; \
    PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 python3 -m compileall -f -q --invalidation-mode unchecked-hash dev mapanything tests tasks.py; \
    bash /srv/set-times /out

# ---------------------------------------------------------------------------------------------------------------------
FROM system AS final
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG TORCH_VARIANT=cuda
# Whole trees from the root on, so that their folders bring their times along too.
COPY --from=environment /out/ /
COPY --from=sources /out/ /

# MAPANYTHING_VENV: ./invoke uses this environment instead of making .venv. USER: torch asks for a name that an arbitrary
# uid does not have. Whatever can be made again goes below /cache, a volume in the compose file.
ENV PATH=/opt/mapanything/.venv/bin:$PATH \
    MAPANYTHING_VENV=/opt/mapanything/.venv \
    MAPANYTHING_TORCH=$TORCH_VARIANT \
    MAPANYTHING_CONTAINER=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/mapanything \
    USER=mapanything \
    XDG_CACHE_HOME=/cache \
    MAPANYTHING_CACHE=/cache/mapanything \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCH_HOME=/cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    HF_HOME=/cache/huggingface \
    HYPOTHESIS_STORAGE_DIRECTORY=/cache/hypothesis \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

ARG REVISION=unknown
LABEL org.opencontainers.image.title="mapanything-opv2v" \
      org.opencontainers.image.description="Fine-tuning MapAnything on OPV2V: checked data, staged training, export, evaluation and pictures" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$REVISION \
      mapanything.torch-variant=$TORCH_VARIANT

WORKDIR /workspace
# An image cannot hold its own digest; this one goes into every run's manifest (mapanything/environment.py). /etc: the
# builder has put its own files there for a while.
RUN --mount=type=bind,source=docker/build,target=/srv \
    contents=$(python /srv/fingerprint.py --digest); \
    code=$(python -c 'from mapanything.environment import code_sha256; print(code_sha256())'); \
    printf '{"revision": "%s", "contents": "%s", "code_sha256": "%s"}\n' "$REVISION" "$contents" "$code" >/opt/mapanything/image.json; \
    touch --date=2000-01-01T00:00:00Z / /etc /opt/mapanything /opt/mapanything/image.json
USER 1000
# tini hands signals on and collects what dies, also where nobody passes --init.
ENTRYPOINT ["tini", "-s", "--", "entrypoint"]
CMD ["--list"]

# ---------------------------------------------------------------------------------------------------------------------
# With the tools of developers, which users' images leave out: --target dev. The compose service `test` and the dev container are of it.
FROM final AS dev
USER 0
RUN --mount=type=bind,from=environment,source=/opt/pip,target=/opt/pip \
    --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle \
    --mount=type=cache,target=/var/cache/pip,sharing=locked \
    export PIP_CACHE_DIR=/var/cache/pip PYTHONPATH=/opt/pip/lib/python3.11/site-packages; \
    if test -s /run/secrets/pip_conf; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
    if test -s /run/secrets/ca_bundle; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    python -m dev.extra
USER 1000

# ---------------------------------------------------------------------------------------------------------------------
# Without --target it is the users' image.
FROM final
