"""What a client without our protos finds: reflection and health."""

import pytest
from foldin.v1 import snapshots_pb2, submissions_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support.wire import SECONDS, Wire, refused

SERVICES = ("foldin.v1.SubmissionService", "foldin.v1.SnapshotService")


@pytest.fixture
def pool(wire: Wire) -> DescriptorPool:
    """Everything that is known of the messages comes from the daemon."""
    return DescriptorPool(ProtoReflectionDescriptorDatabase(wire.channel))


def test_services_are_listed(wire: Wire) -> None:
    services = ProtoReflectionDescriptorDatabase(wire.channel).get_services()
    assert {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == set(services)


@pytest.mark.parametrize("module", [submissions_pb2, snapshots_pb2], ids=SERVICES)
def test_every_message_is_resolved(pool: DescriptorPool, module: object) -> None:
    known = module.DESCRIPTOR  # type: ignore[attr-defined]
    for service in known.services_by_name.values():
        found = pool.FindServiceByName(service.full_name)
        assert [method.name for method in found.methods] == [method.name for method in service.methods]
    for message in known.message_types_by_name.values():
        found = pool.FindMessageTypeByName(message.full_name)
        assert fields(found) == fields(message)


def fields(message: Descriptor) -> list[tuple[str, int, int]]:
    return [(field.name, field.number, field.type) for field in message.fields]


def test_a_call_made_of_nothing_but_reflection(wire: Wire, pool: DescriptorPool) -> None:
    method = pool.FindServiceByName(SERVICES[1]).methods_by_name["Get"]
    request, response = (GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = wire.channel.unary_unary(
        f"/{SERVICES[1]}/Get", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
    assert call(request(ref="v2"), timeout=SECONDS).version == 2


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health(wire: Wire, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert stub.Check(request, timeout=SECONDS).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(request, timeout=SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_health_of_an_unknown_service(wire: Wire) -> None:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    with pytest.raises(Exception, match="NOT_FOUND"):
        stub.Check(health_pb2.HealthCheckRequest(service="foldin.v1.Nothing"), timeout=SECONDS)


def test_an_unknown_method(wire: Wire) -> None:
    call = wire.channel.unary_unary(f"/{SERVICES[0]}/Destroy", request_serializer=bytes, response_deserializer=bytes)
    with refused(StatusCode.UNIMPLEMENTED):
        call(b"", timeout=SECONDS)


def test_a_malformed_message(wire: Wire) -> None:
    call = wire.channel.unary_unary(f"/{SERVICES[1]}/Get", request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(Exception, match=r"(?s).") as caught:
        call(b"\xff\xff\xff", timeout=SECONDS)
    assert "Traceback" not in caught.value.details()  # type: ignore[attr-defined]
