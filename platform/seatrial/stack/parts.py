"""The three parts of the local stack: MLflow, the Ray head, the controller."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from seatrial.config.addresses import VARIABLES, Addresses
from seatrial.config.secret import CONTROLLER_TOKEN, WEBHOOK_SECRET, bearer
from seatrial.monitoring.bearer import TOKEN_VARIABLE
from seatrial.monitoring.probe import Probe
from seatrial.monitoring.proxy import direct_loopback
from seatrial.stack.child import Child
from seatrial.stack.haproxy import SETTINGS
from seatrial.stack.ports import LOOPBACK, Ports
from seatrial.stack.processes import MARK_VARIABLE

STORE_VARIABLE = VARIABLES["store_url"]
HOOK_KEY_VARIABLE = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
# What the controller alone is to know, and the key by which MLflow's server keeps its webhooks' secrets.
CONTROLLERS = tuple(f"{name}{end}" for name in (CONTROLLER_TOKEN, WEBHOOK_SECRET) for end in ("", "_FILE"))
# Ray's token stands in its file, where every part looks for it.
WITHHELD = (STORE_VARIABLE, TOKEN_VARIABLE, HOOK_KEY_VARIABLE, *CONTROLLERS)


@dataclass(frozen=True)
class Plan:
    """Everything that decides how a stack is started."""

    mark: str
    ports: Ports
    addresses: Addresses
    folder: Path
    """Ray's folder; unix sockets in it keep its name short."""
    ray_cpus: int
    """Logical CPUs that Ray may hand out; more than the machine has is fine on a laptop."""
    token: str
    inner_ports: tuple[int, int, int, int]
    """Ray client server, HAProxy metrics, HAProxy statistics, Serve's fallback proxy."""
    hook_secret_path: Path
    """File with the secret by which MLflow signs its hints to the controller."""
    hook_key: str
    """Fernet key by which MLflow encrypts that secret in its database."""
    proxy_program: Path | None = None
    """What Serve runs as HAProxy; its own choice when not given."""

    @property
    def logs(self) -> Path:
        """Folder of the parts' logs."""
        return self.addresses.home / "logs"


def children(plan: Plan) -> list[Child]:
    """The parts in the order in which they are started; all of them may start at once."""
    return [mlflow(plan), ray_head(plan), controller(plan)]


def mlflow(plan: Plan) -> Child:
    """MLflow's tracking server and registry on SQLite, serving artifacts from a local folder."""
    home, uri = plan.addresses.home, plan.addresses.mlflow_uri
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(plan.ports.mlflow)]
    command += ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--workers", "1"]
    command += ["--serve-artifacts", "--artifacts-destination", str(home / "artifacts")]
    # Its job runner would be five more processes for features that are not used here.
    env = common_environment(plan) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # The controller is on loopback, which MLflow does not send hints to unless told.
    env |= {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    # Seconds for which its list of webhooks is kept: one that was just registered is used after that.
    env |= {HOOK_KEY_VARIABLE: plan.hook_key, "MLFLOW_WEBHOOK_CACHE_TTL": "5"}
    probes = (Probe(f"{uri}/health"),)
    return Child("mlflow", tuple(command), env, plan.logs / "mlflow.log", probes, uri)


def ray_head(plan: Plan) -> Child:
    """One Ray node with dashboard; Serve puts HAProxy in front of the replicas."""
    client_port = plan.inner_ports[0]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--log-color=false"]
    command += [f"--node-ip-address={LOOPBACK}", f"--port={plan.ports.ray}", f"--num-cpus={plan.ray_cpus}"]
    command += [f"--dashboard-host={LOOPBACK}", f"--dashboard-port={plan.ports.dashboard}"]
    # 0: free ones are chosen, so that a second stack finds its own.
    command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
    command += [
        f"--ray-client-server-port={client_port}",
        f"--temp-dir={plan.folder}",
        "--disable-usage-stats",
    ]
    env = common_environment(plan) | ray_environment(plan)
    env.pop("RAY_ADDRESS", None)  # a head node that is told of another one joins it
    bearer = {"Authorization": f"Bearer {plan.token}"}
    dashboard = plan.addresses.ray_dashboard
    # Jobs need the node's agent, deployments need the Serve module: both come later than the dashboard.
    probes = (Probe(f"{dashboard}/api/jobs/", bearer), Probe(f"{dashboard}/api/serve/applications/", bearer))
    return Child("ray", tuple(command), env, plan.logs / "ray.log", probes, dashboard)


def controller(plan: Plan) -> Child:
    """Seatrial's own loop."""
    url = plan.addresses.controller_url
    env = common_environment(plan) | ray_environment(plan) | {STORE_VARIABLE: plan.addresses.store_url}
    env |= {name: os.environ[name] for name in CONTROLLERS if os.environ.get(name)}
    if not env.keys() & {WEBHOOK_SECRET, f"{WEBHOOK_SECRET}_FILE"}:
        env[f"{WEBHOOK_SECRET}_FILE"] = str(plan.hook_secret_path)
    command = (sys.executable, "-m", "seatrial.controller")
    probe = Probe(f"{url}/healthz", bearer(os.environ))
    return Child("controller", command, env, plan.logs / "controller.log", (probe,), url)


def common_environment(plan: Plan) -> dict[str, str]:
    """What every part, and so every job and replica, inherits.

    The store's address is not among it, since it may hold a password and jobs do not need it: the controller
    is given it, and replicas read it from the stack's state file as every process below this home can.
    """
    binaries = Path(sys.executable).parent
    inherited = {**os.environ, **plan.addresses.environment()}
    return {
        **{name: value for name, value in inherited.items() if name not in WITHHELD},
        MARK_VARIABLE: plan.mark,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        **direct_loopback(os.environ),
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
    }


def ray_environment(plan: Plan) -> dict[str, str]:
    """Switches that Ray reads when its processes start."""
    _, metrics_port, statistics_port, fallback_port = plan.inner_ports
    proxy = plan.folder / "ha"
    program = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(plan.proxy_program)} if plan.proxy_program else {}
    return {
        **loopback_environment(),
        **program,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        **SETTINGS,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
    }


def loopback_environment() -> dict[str, str]:
    """Makes Ray bind its ports on loopback only, as it does on laptops with other systems.

    Without it 127.0.0.1 is replaced by the address of the network card (`resolve_ip_for_localhost` in
    `ray/_private/services.py`), and the token alone keeps others out.
    """
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
