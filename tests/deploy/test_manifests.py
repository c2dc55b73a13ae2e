"""The files in deploy/ are valid and agree with one another, with the metrics, and with the settings. All offline.

Core objects are checked against Kubernetes' schemas. The custom resources (RayService, ScaledObject) have no schema
here: their fields are compared with short lists, taken from the types of KubeRay v1 and KEDA v1alpha1.
"""

import importlib.util
import re
import subprocess
import typing
from decimal import Decimal
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from elasticlm.handlers.torchserve_settings import TorchServeSettings
from elasticlm.serving.live_settings import CHANGEABLE
from elasticlm.serving.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = re.compile(r"^registry\.example\.com/elasticlm:(?P<version>[\d.]+)$")
OURS = {"app.kubernetes.io/name": "elasticlm"}
BUILD_ARGS = {
    "archive", "replicas", "min_replicas", "max_replicas", "upscale_delay_s", "downscale_delay_s", "batch_size",
    "queue_size", "policy", "latency_budget_ms", "threads", "num_cpus",
}  # fmt: skip
TARGET_DEMAND = Decimal("0.8")
KUBERNETES = "1.30"  # the oldest version that is checked; the newest is what kubernetes-validate has
CUSTOM = ("RayService", "ScaledObject")


def documents() -> list[tuple[str, dict]]:
    """Every Kubernetes object in deploy/, with its file."""
    files = [
        file for file in sorted(DEPLOY.rglob("*.yaml")) if file.name not in ("adapter-values.yaml", "serve-config.yaml")
    ]
    return [(str(file.relative_to(DEPLOY)), document)
            for file in files for document in yaml.safe_load_all(file.read_text("utf-8"))]  # fmt: skip


DOCUMENTS = documents()


def one(kind: str, name: str = "elasticlm") -> dict:
    """The object of a kind and name."""
    (found,) = [document for _, document in DOCUMENTS
                if document["kind"] == kind and document["metadata"]["name"] == name]  # fmt: skip
    return found


def pods() -> dict[str, dict]:
    """The pod templates, by what they run."""
    cluster = one("RayService")["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    return {
        "torchserve": one("Deployment")["spec"]["template"],
        "ray-head": cluster["headGroupSpec"]["template"],
        "ray-worker": workers["template"],
    }


def container(component: str) -> dict:
    (found,) = pods()[component]["spec"]["containers"]
    return found


def ports(component: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(component)["ports"]}


def check_fields(value: dict, required: set[str], optional: set[str]) -> None:
    assert required <= set(value) <= required | optional, f"{set(value) ^ required}"


@pytest.mark.parametrize(
    ("file", "document"), [pytest.param(f, d, id=f"{f}:{d['kind']}") for f, d in DOCUMENTS if d["kind"] not in CUSTOM]
)
@pytest.mark.parametrize("version", [KUBERNETES, kubernetes_validate.latest_version()])
def test_core_objects_follow_kubernetes_schemas(file, document, version):
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("component", ["torchserve", "ray-head", "ray-worker"])
def test_pod_templates_follow_kubernetes_schemas(component):
    template = pods()[component]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"} | template["metadata"],
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_wrong_field_is_found():
    wrong = one("Service") | {"spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_ray_service_has_the_fields_of_its_type():
    service = one("RayService")
    assert service["apiVersion"] == "ray.io/v1"
    check_fields(service["spec"], {"serveConfigV2", "rayClusterConfig"}, set())
    cluster = service["spec"]["rayClusterConfig"]
    check_fields(
        cluster, {"headGroupSpec", "workerGroupSpecs", "rayVersion"}, {"enableInTreeAutoscaling", "autoscalerOptions"}
    )
    check_fields(cluster["autoscalerOptions"], set(), {"idleTimeoutSeconds", "securityContext"})
    check_fields(cluster["headGroupSpec"], {"rayStartParams", "template"}, {"serviceType"})
    (workers,) = cluster["workerGroupSpecs"]
    check_fields(workers, {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}, set())
    for group in (cluster["headGroupSpec"], workers):
        assert all(type(value) is str for value in group["rayStartParams"].values())
    pins = dict(re.findall(r"^(ray)==(.*)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert cluster["rayVersion"] == pins["ray"]


def test_the_scaled_object_has_the_fields_of_its_type():
    scaled = one("ScaledObject")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    optional = {"pollingInterval", "minReplicaCount", "maxReplicaCount", "advanced", "fallback"}
    check_fields(scaled["spec"], {"scaleTargetRef", "triggers"}, optional)
    check_fields(scaled["spec"]["fallback"], {"failureThreshold", "replicas"}, set())
    (trigger,) = scaled["spec"]["triggers"]
    check_fields(trigger, {"type", "metadata", "metricType"}, set())
    check_fields(trigger["metadata"], {"serverAddress", "query", "threshold"}, set())
    assert all(type(value) is str for value in trigger["metadata"].values()), "KEDA takes strings"
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == one("HorizontalPodAutoscaler")["spec"]["behavior"], "which was checked against a schema"


def serve_configs() -> dict[str, dict]:
    """The configurations of Ray Serve: of RayService and of `serve deploy`."""
    return {
        "kuberay": yaml.safe_load(one("RayService")["spec"]["serveConfigV2"]),
        "serve deploy": yaml.safe_load((DEPLOY / "ray/serve-config.yaml").read_text("utf-8")),
    }


def test_both_configurations_of_ray_serve_are_valid_and_equal():
    schema = pytest.importorskip("ray.serve.schema").ServeDeploySchema
    first, second = serve_configs().values()
    assert first == second
    schema.model_validate(first)


def test_the_arguments_of_the_ray_application_exist():
    (application,) = serve_configs()["kuberay"]["applications"]
    module, _, function = application["import_path"].partition(":")
    arguments = application["args"]
    assert set(arguments) <= BUILD_ARGS
    Settings(policy=arguments["policy"])
    if importlib.util.find_spec(module):
        hints = typing.get_type_hints(getattr(importlib.import_module(module), function))
        fields = next(hint.model_fields for name, hint in hints.items() if name != "return")
        assert set(arguments) <= set(fields)


def test_ray_workers_have_room_for_all_replicas():
    (application,) = serve_configs()["kuberay"]["applications"]
    (group,) = one("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    per_pod = int(group["rayStartParams"]["num-cpus"]) // application["args"]["num_cpus"]
    assert per_pod * group["minReplicas"] >= application["args"]["min_replicas"]
    assert per_pod * group["maxReplicas"] >= application["args"]["max_replicas"]
    assert application["args"]["threads"] * per_pod < int(container("ray-worker")["resources"]["limits"]["cpu"])


def test_every_metric_exists():
    metrics = yaml.safe_load((ROOT / "handlers/metrics.yaml").read_text("utf-8"))["model_metrics"]
    known = {metric["name"]: metric["dimensions"] for kind in metrics.values() for metric in kind}
    text = "\n".join(file.read_text("utf-8") for file in DEPLOY.rglob("*") if file.is_file())
    text += (ROOT / "docs/kubernetes.md").read_text("utf-8")
    named = set(re.findall(r"\b(?:ray_)?(elastic_[a-z0-9_]+)", text))
    assert "elastic_work_seconds_total" in named <= set(known)
    assert "ModelName" in known["elastic_work_seconds_total"]


def test_the_autoscalers_agree():
    adapter = yaml.safe_load((DEPLOY / "torchserve/hpa/adapter-values.yaml").read_text("utf-8"))
    (rule,) = adapter["rules"]["external"]
    autoscaler, scaled = one("HorizontalPodAutoscaler")["spec"], one("ScaledObject")["spec"]
    (metric,), (trigger,) = autoscaler["metrics"], scaled["triggers"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert autoscaler["scaleTargetRef"] == scaled["scaleTargetRef"]
    deployment = one("Deployment")
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"],
    }  # fmt: skip
    assert "replicas" not in deployment["spec"], "it would undo the autoscaler's number at every apply"
    bounds = {"minReplicas": scaled["minReplicaCount"], "maxReplicas": scaled["maxReplicaCount"]}
    assert bounds.items() <= autoscaler.items()
    workers = int(deployment["metadata"]["annotations"]["elasticlm/workers"])
    target = metric["external"]["target"]
    assert (target["type"], trigger["metricType"]) == ("AverageValue", "AverageValue")
    assert Decimal(target["averageValue"].removesuffix("m")) / 1000 == TARGET_DEMAND * workers
    assert Decimal(trigger["metadata"]["threshold"]) == TARGET_DEMAND * workers
    model = metric["external"]["metric"]["selector"]["matchLabels"]["ModelName"]
    assert f'ModelName="{model}"' in trigger["metadata"]["query"]
    assert container("torchserve")["args"][1].startswith(f"{model}=")
    assert workers < int(container("torchserve")["resources"]["limits"]["cpu"])


def properties(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_config_map_is_the_images_file_and_changes_only_what_a_cluster_needs():
    text = (DEPLOY / "torchserve/config.properties").read_text("utf-8")
    assert one("ConfigMap", "elasticlm-config")["data"] == {"config.properties": text}
    local = properties((ROOT / "handlers/config.properties").read_text("utf-8").replace("#metrics_", "metrics_"))
    ours = properties(text)
    assert set(ours) == set(local), "settings that the project does not know, or that were forgotten"
    changed = {name for name in ours if ours[name] != local[name]}
    assert changed == {"inference_address", "metrics_address", "metrics_config"}
    assert "COPY handlers/metrics.yaml deploy/torchserve/config.properties" in (ROOT / "Dockerfile").read_text()


def test_the_live_settings_are_known_and_can_be_changed():
    live = yaml.safe_load(one("ConfigMap", "elasticlm-live")["data"]["live.yaml"])
    assert set(live) <= set(CHANGEABLE)
    Settings(**live)
    (mount,) = [mount for mount in container("torchserve")["volumeMounts"] if mount["name"] == "live"]
    assert "subPath" not in mount, "a file mounted by subPath is never updated"
    assert f"{mount['mountPath']}/live.yaml" in (ROOT / "docs/kubernetes.md").read_text("utf-8")
    (edit,) = re.findall(r"sed '(.*)'", (ROOT / "docs/kubernetes.md").read_text("utf-8"))
    template = (ROOT / "handlers/model-config.yaml").read_bytes()
    edited = subprocess.run(["sed", edit], input=template, check=True, capture_output=True).stdout
    assert yaml.safe_load(edited)["handler"]["live_file"] == f"{mount['mountPath']}/live.yaml"


def test_ports_agree():
    ours = properties((DEPLOY / "torchserve/config.properties").read_text("utf-8"))
    numbers = {name: int(ours[f"{name}_address"].rpartition(":")[2]) for name in ("inference", "management", "metrics")}
    assert ports("torchserve") == {"http": numbers["inference"], "metrics": numbers["metrics"]}
    (port,) = one("Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (numbers["inference"], "http")
    assert TorchServeSettings().management_url.endswith(f":{numbers['management']}")
    policies = one("NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in policies for port in rule["ports"]} == set(ports("torchserve"))
    ray = serve_configs()["kuberay"]["http_options"]["port"]
    assert ports("ray-head") | ports("ray-worker") == ports("ray-head")
    assert ports("ray-head") == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": ray, "metrics": 8080}
    for component in ("torchserve", "ray-worker"):
        annotations = pods()[component]["metadata"]["annotations"]
        assert int(annotations["prometheus.io/port"]) == ports(component)["metrics"]
    ready = (DEPLOY / "ready.sh").read_text()
    assert f"127.0.0.1:{numbers['management']}" in ready
    assert f"127.0.0.1:{ray}" in ready
    (exposed,) = re.findall(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert set(map(int, exposed.split())) == {numbers["inference"], numbers["metrics"], ray, 8265}


def test_selectors_find_the_pods_that_are_meant():
    for kind, name, component in (
        ("Deployment", "elasticlm", "torchserve"),
        ("PodDisruptionBudget", "elasticlm", "torchserve"),
        ("PodDisruptionBudget", "elasticlm-ray-workers", "ray-worker"),
    ):
        chosen = one(kind, name)["spec"]["selector"]["matchLabels"]
        found = {of for of, template in pods().items() if chosen.items() <= template["metadata"]["labels"].items()}
        assert found == {component}, (kind, name)
    labels = pods()["torchserve"]["metadata"]["labels"]
    assert one("Service")["spec"]["selector"] == one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert all(OURS.items() <= document["metadata"]["labels"].items() for _, document in DOCUMENTS)


@pytest.mark.parametrize("component", ["torchserve", "ray-head", "ray-worker"])
def test_pods_are_of_the_image_without_root_and_with_what_they_mount(component):
    spec, main = pods()[component]["spec"], container(component)
    version = re.search(r'__version__ = "(.*)"', (ROOT / "elasticlm/__init__.py").read_text())[1]
    assert IMAGE.match(main["image"])["version"] == version
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.M)
    security = spec["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (
        int(user[1]),
        int(user[2]),
        True,
    )
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {mount["name"] for mount in main["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    written = {mount["mountPath"] for mount in main["volumeMounts"] if not mount.get("readOnly")}
    folders = set(re.findall(r"\b(?:HOME|TMPDIR|TEMP|RAY_TMPDIR)=(\S+)", (ROOT / "Dockerfile").read_text()))
    assert folders == {"/run/elasticlm", "/tmp"}
    assert folders <= written
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == [one("PersistentVolumeClaim", "elasticlm-model-store")["metadata"]["name"]]
    maps = {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
    assert all(one("ConfigMap", name) for name in maps)
    seconds = re.search(r"\d+", " ".join(main["lifecycle"]["preStop"]["exec"]["command"]))
    assert int(seconds[0]) + 20 < spec["terminationGracePeriodSeconds"]


def test_readiness_asks_for_a_ready_worker():
    main = container("torchserve")
    for probe in ("startupProbe", "readinessProbe"):
        assert main[probe]["exec"]["command"] == ["/srv/elasticlm/ready.sh", "torchserve"]
    template = yaml.safe_load((ROOT / "handlers/model-config.yaml").read_text("utf-8"))
    start = main["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= template["startupTimeout"]
    assert "ping" not in str(main["livenessProbe"])
