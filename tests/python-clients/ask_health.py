"""Asks a gateway over gRPC for its health, which needs no secret, and which services it has, which does.

    ask_health.py ADDRESS SECRET

Prints what it said; ends with an error where that is not enough.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

address, secret = sys.argv[1:]
SERVICE = "vlinders.v1.InferenceService"
PATIENCE = 30

channel = grpc.insecure_channel(address)
health = health_pb2_grpc.HealthStub(channel)
answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE, wait_for_ready=True)
status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
assert status == "SERVING", status

reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
question = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
told = next(reflection.ServerReflectionInfo(question, metadata=(("x-internal-auth", secret),), timeout=PATIENCE))
services = [service.name for service in told.list_services_response.service]
assert SERVICE in services, services
print(f"{SERVICE} is {status}, one of {len(services)} services")
