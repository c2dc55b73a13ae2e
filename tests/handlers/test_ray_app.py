"""What Ray Serve is asked to run: archives with their arguments. Nothing is started."""

import pytest
from archives import archive, servable
from pydantic import ValidationError

from elasticlm.errors import InputError
from elasticlm.handlers.ray_app import build
from elasticlm.handlers.ray_arguments import Arguments, ServedArchive
from elasticlm.serving.bundle import unpack

MEANS_MS = {100: 60.0, 50: 40.0, 10: 5.0}


@pytest.fixture(scope="module")
def packed(tiny_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return archive("mini", servable(tiny_artifact, folder / "artifact", MEANS_MS), folder, latency_budget_ms=200)


def read(path, **arguments):
    return ServedArchive.read(path, Arguments(archive=str(path), **arguments))


def test_an_archive_says_how_it_is_served(packed):
    served = read(packed)
    assert (served.name, served.task, served.levels) == ("mini", "embed", ("100", "50", "10"))
    assert (served.settings.latency_budget_ms, served.settings.policy) == (200, "deadline")
    assert (served.batch_size, served.queue_size, served.timeout_s) == (1, 100, 120)


def test_an_unpacked_archive_is_the_same(packed, tmp_path):
    unpack(packed, tmp_path / "unpacked")
    there, here = read(packed), read(tmp_path / "unpacked")
    assert there.path != here.path
    assert (there.name, there.settings, there.levels) == (here.name, here.settings, here.levels)


def test_arguments_replace_settings(packed):
    served = read(packed, batch_size=8, queue_size=7, policy="slack:t=100,alpha=0.5", settings={"late": "reject"})
    assert (served.batch_size, served.queue_size) == (8, 7)
    settings = served.settings
    assert (settings.policy, settings.latency_budget_ms, settings.alpha, settings.late) == ("slack", 100, 0.5, "reject")
    assert read(packed, settings={"policy": "fixed:50"}).settings.policy == "fixed:50"
    assert read(packed, latency_budget_ms=50).queue_size == 25, "the queue is bounded in proportion to the budget"


def test_command_line_arguments_are_strings(packed):
    arguments = Arguments.model_validate({"archive": str(packed), "replicas": "2", "latency_budget_ms": "100"})
    assert ServedArchive.read(packed, arguments).settings.latency_budget_ms == 100
    assert arguments.replicas == 2


@pytest.mark.parametrize("wrong", [{"replica": 2}, {"replicas": 0}, {"batch_size": "many"}, {}])
def test_wrong_arguments_are_refused(packed, wrong):
    with pytest.raises(ValidationError):
        Arguments.model_validate(wrong | ({"archive": str(packed)} if wrong else {}))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"settings": {"lates": "shed"}}, "did you mean 'late'"),
        ({"policy": "fast"}, "policy"),
        ({"replicas": 3, "max_replicas": 2}, "replicas is 3"),
        ({"replicas": 1, "min_replicas": 2, "max_replicas": 4}, "min_replicas"),
    ],
)
def test_arguments_that_do_not_fit_say_why(packed, arguments, says):
    with pytest.raises(InputError, match=says):
        build(Arguments(archive=str(packed), **arguments))


def test_what_is_no_archive_is_refused(packed, tmp_path):
    (tmp_path / "text.mar").write_text("no archive")
    for path in (tmp_path / "text.mar", tmp_path / "missing.mar", tmp_path):
        with pytest.raises(InputError, match="not an archive"):
            build(Arguments(archive=str(path)))
    with pytest.raises(InputError, match="same name"):
        build(Arguments(archive=f"{packed},{packed}"))


def test_replicas_are_scaled_by_demand_only_if_there_may_be_more(packed):
    fixed, scaled = (build(Arguments(archive=str(packed), **more)) for more in ({"replicas": 3}, {"max_replicas": 4}))
    assert fixed._bound_deployment.num_replicas == 3
    scaling = scaled._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.upscale_delay_s) == (1, 4, 60)
    assert scaling.policy.policy_function.endswith("scale_by_demand")
