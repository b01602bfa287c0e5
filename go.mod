module github.com/ratelimit-go/ratelimit

go 1.26

require (
	github.com/felixge/httpsnoop v1.1.0
	github.com/stretchr/testify v1.12.1
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect
