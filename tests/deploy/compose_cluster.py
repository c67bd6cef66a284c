"""The compose file's default profile as processes: two runners, two scorers, one of the rest."""

from __future__ import annotations

from pathlib import Path

from tests.deploy.cluster import Cluster, Start
from tests.deploy.compose import Container, containers
from tests.faults.system import free_port

KEY = "compose-demo-key"
PORTS = {"api": 8080, "runner": 8003, "scorer": 8002, "generator": 8001, "demo-target": 9001}
GRACE_SECONDS = 10.0
"""What an engine waits where the file says nothing."""


def compose_cluster(folder: Path, *, database_url: str, redis_url: str) -> Cluster:
    """Prepare every container; nothing runs yet."""
    cluster = Cluster(folder, KEY)
    files = containers()
    ports = {
        f"{name}-{n}": free_port()
        for name in PORTS
        for n in range(1, int(files[name].content["deploy"].get("replicas", 1)) + 1)
    }
    targets = folder / "targets.yaml"
    source = files["scorer"].content["volumes"][0].split(":")[0]
    demo = f"127.0.0.1:{ports['demo-target-1']}"
    text = (Path(__file__).parents[2] / "deploy" / source).read_text()
    targets.write_text(text.replace("demo-target:9001", demo))
    for name in ("migrate", *PORTS):
        n_replicas = int(files[name].content["deploy"].get("replicas", 1))
        for n in range(1, n_replicas + 1):
            places = {
                "postgres:5432": database_url,
                "redis://redis:6379/0": redis_url,
                "/etc/instructzero/targets.yaml": str(targets),
            } | {
                f"{other}:{port}": f"127.0.0.1:{ports.get(f'{other}-{n}', ports[f'{other}-1'])}"
                for other, port in PORTS.items()
            }
            own = ports.get(f"{name}-{n}", 0)
            cluster.add(_start(files[name], n if n_replicas > 1 else 0, own, places))
    return cluster


def _start(container: Container, number: int, port: int, places: dict[str, str]) -> Start:
    def local(value: str) -> str:
        for there, here in places.items():
            value = value.replace(there, here)
        return value

    environment = {
        key: str(port) if key.endswith("PORT") else local(value)
        for key, value in container.environment.items()
    }
    secrets = {name: path.read_text().strip() for name, path in container.secrets.items()}
    for name, value in secrets.items():
        if "postgres:5432" in value:  # the whole address: this machine's has another user
            secrets[name] = places["postgres:5432"]
    grace = str(container.content.get("stop_grace_period", f"{GRACE_SECONDS:g}s"))
    return Start(
        name=f"{container.name}-{number}" if number else container.name,
        image=str(container.content["image"]).removeprefix("instructzero-").partition(":")[0],
        command=container.command,
        environment=environment,
        secrets=secrets,
        grace_seconds=float(grace.removesuffix("s")),
    )
