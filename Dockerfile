# One image for every process of docker-compose.yml; the command says which it is.

FROM python:3.11.15-slim-trixie AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY promptmill promptmill
COPY api api
COPY worker worker
COPY cli cli
# Our wheel, and those of everything that it needs.
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --wheel-dir /wheels .

FROM python:3.11.15-slim-trixie
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin promptmill
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir --no-index /wheels/*.whl
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Celery puts the working folder on the import path, so it is one that nobody can write to.
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
# The exec form: signals reach the process itself.
CMD ["uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--no-access-log"]
