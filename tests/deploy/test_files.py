"""The files that start the service elsewhere: valid by their schemas, and of one mind with the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from acorn_svc.settings import PREFIX, Settings

REPOSITORY = Path(__file__).parents[2]
COMPOSE = ["compose.yaml", "compose.many.yaml"]
KUBERNETES = sorted(path.name for path in (REPOSITORY / "kubernetes").glob("*.yaml"))
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
GRACE_SECONDS = Settings().shutdown_seconds + 10
USER = 10001


def compose(name: str) -> dict[str, Any]:
    """A compose file with the variables of the environment put in."""
    text = (REPOSITORY / name).read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", text)
    return dict(yaml.safe_load(text))


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / "kubernetes" / name).read_text()))


def pods(name: str) -> list[dict[str, Any]]:
    return [item["spec"]["template"]["spec"] for item in objects(name) if "template" in item["spec"]]


def own_services(name: str) -> dict[str, Any]:
    """Those that run Acorn itself."""
    return {
        service: body
        for service, body in compose(name)["services"].items()
        if body["image"].partition(":")[0] == "acorn"
    }


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_are_valid(name: str) -> None:
    schema = json.loads((files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json").read_text())
    jsonschema.validate(compose(name), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**compose(name), "service": {}}, schema)


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_files_are_valid(name: str) -> None:
    for item in objects(name):
        kubernetes_validate.validate(item, "1.33", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**item, "spek": {}}, "1.33", strict=True)


@pytest.mark.parametrize("name", COMPOSE)
def test_what_compose_files_name_is_there(name: str) -> None:
    document = compose(name)
    for body in document["services"].values():
        for volume in body.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in document["volumes"] or (REPOSITORY / source).exists(), source
        for other in body.get("depends_on", []):
            assert other in document["services"]
        if "build" in body:
            assert f" AS {body['build']['target']}\n" in DOCKERFILE
            for argument in body["build"].get("args", {}):
                assert f"ARG {argument}" in DOCKERFILE


@pytest.mark.parametrize("name", COMPOSE)
def test_composed_services_have_no_privileges(name: str) -> None:
    assert own_services(name)
    for body in own_services(name).values():
        assert body["read_only"] is True
        assert body["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in body["security_opt"]
        assert body["stop_grace_period"] == f"{GRACE_SECONDS}s"


@pytest.mark.parametrize("name", COMPOSE)
def test_composed_services_are_for_this_machine_alone(name: str) -> None:
    for body in compose(name)["services"].values():
        for port in body.get("ports", []):
            assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_have_no_privileges(name: str) -> None:
    assert pods(name)
    for pod in pods(name):
        assert pod["terminationGracePeriodSeconds"] == GRACE_SECONDS
        assert pod["automountServiceAccountToken"] is False
        # A service named acorn would set ACORN_PORT to an address.
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == USER
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} == {"data", "tmp"}


@pytest.mark.parametrize("name", KUBERNETES)
def test_selectors_find_their_pods(name: str) -> None:
    labels = [
        item["spec"]["template"]["metadata"]["labels"] for item in objects(name) if "template" in item["spec"]
    ]
    for item in objects(name):
        selector = item["spec"].get("selector", {})
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= found.items() for found in labels)


def given_settings() -> Iterator[tuple[str, str, str]]:
    """Where a setting is given, its name, and its value."""
    for name, value in re.findall(rf"\b({PREFIX}[A-Z_]+)=(\S+)", DOCKERFILE):
        yield "Dockerfile", name, value
    for name in COMPOSE:
        for body in own_services(name).values():
            for variable, value in body.get("environment", {}).items():
                if value not in (None, variable):  # those come from the environment
                    yield name, variable, str(value)
    for name in KUBERNETES:
        for pod in pods(name):
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    yield name, variable["name"], variable["value"]


@pytest.mark.parametrize(
    ("place", "name", "value"),
    sorted({given for given in given_settings() if given[1].startswith(PREFIX)}),
)
def test_settings_exist_and_may_have_their_value(
    place: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    field = name.removeprefix(PREFIX).lower()
    assert field in Settings.model_fields, f"{place}: there is no setting {name}"
    assert str(getattr(Settings(), field)).lower() == value.lower()


def test_the_image_runs_as_a_user_without_privileges() -> None:
    assert f"USER {USER}:{USER}" in DOCKERFILE
    assert "ACORN_DATA=/data" in DOCKERFILE
    assert "VOLUME /data" in DOCKERFILE


def test_scripts_of_the_image_reach_its_build() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for script in re.findall(r"\bdocker/\w+\.sh\b", DOCKERFILE):
        assert (REPOSITORY / script).stat().st_mode & 0o100, script
    assert "!docker" in ignored


def test_the_tiny_cuda_nn_that_is_built_is_the_pinned_one() -> None:
    script = (REPOSITORY / "docker" / "tiny_cuda_nn.sh").read_text()
    pattern = re.search(r"sed -n 's/(.*)/\\1/p' pyproject\.toml", script)
    assert pattern is not None
    found = re.findall(
        pattern[1].replace(r"\(", "(").replace(r"\)", ")"),
        (REPOSITORY / "pyproject.toml").read_text(),
        re.MULTILINE,
    )
    assert len(found) == 1
    assert re.search(r"@[0-9a-f]{40}#", found[0])
