# The pipeline with everything it needs but data: see docs/container.md.
#
# The base brings the driver's end of CUDA; PyTorch brings CUDA's libraries, of the same version (torch.version.cuda is
# 13.0, from requirements.lock). To pin the base by digest, or to refresh it, look the digest up and give it:
#     docker buildx imagetools inspect nvidia/cuda:13.0.2-base-ubuntu24.04
#     docker build --build-arg BASE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:... .
# Any Debian or Ubuntu whose own Python is 3.11 or 3.12 will do, such as debian:bookworm-slim, where no GPU is wanted.
ARG BASE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE} AS system
# Versions of Debian packages are not pinned: old ones leave the archives, and with them the build would end.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates git python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
 && python3 -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "Python 3.11 or 3.12 wanted")' \
 # In the container whoever comes may own the clone; DVC's git backends do not read this from the environment.
 && git config --system --add safe.directory '*' \
 && python3 -m venv /opt/venv

# The last commit and nothing else: no changed files, no history, no address of a remote, which may hold a token.
FROM system AS code
COPY .git /clone/.git
RUN git clone --quiet --depth 1 file:///clone /workspace \
 && git -C /workspace remote remove origin \
 && rm -rf /workspace/.git/logs /workspace/.git/hooks \
 && chmod -R a+rwX /workspace

FROM system
ENV PATH=/opt/venv/bin:$PATH
# One package has no wheel. It is built with the locked setuptools, not with what pip would fetch for it unchecked.
# A package index of one's own: --secret id=pip,src=pip.conf, and where it has a certificate authority of its own
# --secret id=ca,src=ca.pem and "cert = /run/secrets/ca" in pip.conf. Both are there for this line and in no layer.
RUN --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    awk '/^[^ ]/ { wanted = /^setuptools==/ } wanted' /tmp/requirements.lock > /tmp/setuptools.lock \
 && pip install --no-cache-dir --quiet --require-hashes -r /tmp/setuptools.lock \
 && pip install --no-cache-dir --quiet --require-hashes --no-build-isolation --use-pep517 -r /tmp/requirements.lock \
 && pip uninstall --quiet --yes pip \
 && rm -rf /tmp/setuptools.lock /root/.cache \
 && { dpkg-query --show; ls /opt/venv/lib/python3*/site-packages; } > /etc/pipeline-packages

# What is written beside the clone: to keep it, mount a folder or volume on /cache. For any user, known or not.
ENV HOME=/cache/home TORCH_HOME=/cache/torch MPLCONFIGDIR=/cache/matplotlib DVC_SITE_CACHE_DIR=/cache/dvc \
    USER=pipeline LOGNAME=pipeline LANG=C.UTF-8 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN mkdir --mode 1777 /cache /cache/home /cache/torch /cache/matplotlib /cache/dvc && mkdir --mode 0777 /workspace
COPY docker/entrypoint.sh /usr/local/bin/entrypoint
COPY --from=code /workspace /workspace
WORKDIR /workspace

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Proxy losses, reproduced" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/entrypoint"]
CMD ["docker/default.sh"]
