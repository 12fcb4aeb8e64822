# One image for every service: compose.yaml says which one it is (`planner`, `executor`, `gpu-agent`, …).
FROM python:3.12-slim

# The services never need to be root. /data is where those that keep something keep it; a new volume takes its owner.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin remit \
    && install -d -o remit -g remit /data
ENV PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    REMIT_DATA_DIR=/data HOME=/tmp
WORKDIR /app

# What rarely changes first: the pinned dependencies are a layer of their own, which a change of our code keeps.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    >/tmp/dependencies.txt \
    && pip install -q -c constraints.txt -r /tmp/dependencies.txt \
    && rm /tmp/dependencies.txt

# Editable, as in a checkout: playbooks and queries are found where they lie.
COPY . .
RUN pip install -q --no-deps -e . && python -m compileall -q bench cli services shared

USER remit
ENTRYPOINT ["remit"]
CMD ["--help"]
