// Command ratelimitvet reports mistakes with package ratelimit. See package ratelimitvet
// for what it finds.
//
//	go vet -vettool=$(which ratelimitvet) ./...
//	ratelimitvet ./...        # the same by itself
//	ratelimitvet -fix ./...   # apply the suggested fixes
package main

import (
	"golang.org/x/tools/go/analysis/multichecker"

	"github.com/ratelimit-go/ratelimit/ratelimitvet"
)

func main() { multichecker.Main(ratelimitvet.Analyzers()...) }
