module ecr-credential-operator/tests/consumers/stage

go 1.26.0
