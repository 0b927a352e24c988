# Any binary of gr4ad_jax, by default the server of the run that is shipped.
#
#   docker build -t gr4ad .                              CPU
#   docker build -t gr4ad --build-arg JAX=cuda12 .       NVIDIA GPUs; cuda13 and tpu likewise
#   docker run --rm gr4ad recommend --workdir=pretrained:online_retail --ads=85123A
#
# compose.yaml starts the server with what it needs.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist

FROM python:${PYTHON}-slim
ARG JAX=cpu
# One layer: the wheel leaves nothing behind.
RUN --mount=from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir "$(ls /dist/*.whl)[data,text,plots,log,serve,hub]" "jax[${JAX}]"

# Nobody in particular: what it may write lies in two folders, the rest of the image is only read.
RUN useradd --system --uid 10001 --home-dir /var/lib/gr4ad --create-home gr4ad \
    && mkdir -p /var/cache/gr4ad /runs \
    && chown gr4ad:gr4ad /var/cache/gr4ad /var/lib/gr4ad
ENV XDG_CACHE_HOME=/var/cache/gr4ad \
    XDG_STATE_HOME=/var/lib/gr4ad \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /runs
VOLUME ["/var/cache/gr4ad", "/var/lib/gr4ad"]
EXPOSE 8080

# It lives from its first second; /readyz says when it answers, which is after the compilation.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["gr4ad"]
CMD ["serve", "--workdir=pretrained:online_retail", "--host=0.0.0.0", "--port=8080", \
     "--token_file=/run/secrets/token", "--log_format=json"]
