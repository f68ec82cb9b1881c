#!/bin/sh
# The Go module sigs.k8s.io/gateway-api/conformance v1.6.3, the suite by which an implementation of Gateway API is to be judged: nobody can
# depend on it as it is published.
#
# Its go.mod requires sigs.k8s.io/gateway-api v0.0.0-00010101000000-000000000000, which `replace … => ../` makes good in its own repository; of a
# dependency, Go ignores every `replace`. Expected: `go get …/conformance@v1.6.3` brings the API module of the same release. Seen: Go looks for a
# version that never was, and ends with an error. A program that names the API module itself together with the suite gets both, of whatever
# versions: nothing holds the two together, and the suite of v1.6.3 builds against the API of v1.6.1.
#
# Exits non-zero when that changes. Needs go; works in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > main.go <<'GO'
package main

import (
	"fmt"

	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

func main() { fmt.Println(suite.GatewayHTTPConformanceProfileName) }
GO
suite=sigs.k8s.io/gateway-api/conformance@v1.6.3 api=sigs.k8s.io/gateway-api
# How `go get` ends, and which version of the API module is chosen then.
got() { # modules
    rm -f go.mod go.sum
    go mod init finding 2>/dev/null
    if go get "$@" 2>err && go build -o built . 2>>err; then ended=built; else ended="cannot be built"; fi
    echo "$ended, $(go list -m -f '{{.Version}}' $api 2>/dev/null || echo 'no API module')"
}
alone=$(got $suite)
grep -q 'gateway-api@v0.0.0-00010101000000-000000000000' err && alone="$alone, for want of v0.0.0"
seen=$(echo "alone: $alone"; echo "with v1.6.3: $(got $api@v1.6.3 $suite)"; echo "with v1.6.1: $(got $api@v1.6.1 $suite)")
echo "$seen"
wanted="alone: cannot be built, no API module, for want of v0.0.0
with v1.6.3: built, v1.6.3
with v1.6.1: built, v1.6.1"
[ "$seen" = "$wanted" ] || { echo "changed; it was:"; echo "$wanted"; exit 1; }
