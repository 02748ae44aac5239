// Grafana itself is not to be had as a module: these are the types of its dashboards, as it generates them from its own schemas.
module ecr-credential-operator/tests/consumers/grafana

go 1.26.0

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
