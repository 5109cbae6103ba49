"""Load tests over HTTP: generators of load, scenarios with service levels, benchmarks. Never imports the service."""
