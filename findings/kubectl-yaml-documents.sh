#!/bin/sh
# kubectl, by the reader of its `-f` (Go modules k8s.io/cli-runtime v0.36.6, sigs.k8s.io/yaml v1.6.0), on valid YAML: it is cut at lines `---`
# before anything reads it as YAML, and of each piece the first document counts.
#
# 1. A document that begins after `...` (YAML 1.2.2, section 9.2: an explicit end, then a bare document) is lost without a word: two objects go in,
#    one comes out.
# 2. A document that begins on its own separator's line, as every emitter of JSON-like YAML may write it (`--- {…}`, `--- !!map`), is an error.
# 3. Any directive is an error: `%YAML 1.1` is cut off from its document, and `%YAML 1.2` is refused for its number ("found incompatible
#    YAML document"; section 6.8.1 wants a warning for a later one at most). So a file cannot say that it is meant as YAML 1.2, where `on` is text:
# 4. a key `on`, as of a retry policy, is sent as `true`, and three keys `on`, `y` and `yes` are one, the last of them, without a word.
# What helps: quotes, and `---` alone between documents.
#
# Exits non-zero when that changes. Needs go; builds in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/main.go" <<'GO'
package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/resource"
)

// The specs of the objects that are sent for a file, as JSON.
func read(text string) string {
	infos, err := resource.NewLocalBuilder().Unstructured().Stream(strings.NewReader(text), "file").Do().Infos()
	if err != nil {
		return err.Error()
	}
	var specs []string
	for _, info := range infos {
		all, err := runtime.DefaultUnstructuredConverter.ToUnstructured(info.Object)
		if err != nil {
			return err.Error()
		}
		spec, _ := json.Marshal(all["spec"])
		specs = append(specs, string(spec))
	}
	return strings.Join(specs, " ")
}

func object(spec string) string {
	return "apiVersion: example.com/v1\nkind: Policy\nmetadata: {name: p}\nspec: " + spec + "\n"
}

func main() {
	fmt.Println("two, after ---:", read(object("{a: 1}")+"---\n"+object("{a: 2}")))
	fmt.Println("two, after ...:", read(object("{a: 1}")+"...\n"+object("{a: 2}")))
	fmt.Println("--- !!map:", read("--- !!map\n"+object("{a: 1}")))
	fmt.Println("%YAML 1.1:", read("%YAML 1.1\n---\n"+object("{a: 1}")))
	fmt.Println("%YAML 1.2:", read("%YAML 1.2\n---\n"+object("{a: 1}")))
	fmt.Println("a key on:", read(object("{on: [Reset]}")))
	fmt.Println("keys on, y, yes:", read(object("{on: a, y: b, yes: c}")))
	fmt.Println("quoted:", read(object("{\"on\": a, \"y\": b, \"yes\": c}")))
}
GO
cat > "$folder/wanted" <<'WANTED'
two, after ---: {"a":1} {"a":2}
two, after ...: {"a":1}
--- !!map: error parsing file: invalid Yaml document separator: !!map
%YAML 1.1: error parsing file: error converting YAML to JSON: yaml: line 1: did not find expected <document start>
%YAML 1.2: error parsing file: error converting YAML to JSON: yaml: found incompatible YAML document
a key on: {"true":["Reset"]}
keys on, y, yes: {"true":"c"}
quoted: {"on":"a","y":"b","yes":"c"}
WANTED
(cd "$folder" && go mod init finding && go get k8s.io/cli-runtime@v0.36.6 sigs.k8s.io/yaml@v1.6.0 && go mod tidy) 2> "$folder/err" || { cat "$folder/err"; exit 1; }
seen=$(cd "$folder" && go run .)
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
