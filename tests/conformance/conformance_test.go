// Package conformance runs Gateway API's own conformance suite against a cluster that KUBECONFIG names. `run` beside it makes that cluster
// out of tests/kube-api and tests/kube-node; README.md says how.
package conformance

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	crds "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	failure "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/yaml"
)

// establishedWithin is how long the API server may take to serve a new kind.
const establishedWithin = 30 * time.Second

var (
	crdFolder  = flag.String("crds", "", "folder of CustomResourceDefinitions to install first; none if empty")
	controller = flag.String("controller", "meshwright.dev/controller", "controller of the GatewayClass that is made if there is none")
	edge       = flag.String("edge", "", "manifest of the proxy of a Gateway `public`: each Gateway gets one of its own; none if empty")
)

// Aim: Gateway API's kinds are there before an implementation is, which looks for them.
func TestKinds(t *testing.T) {
	if *crdFolder == "" {
		t.Skip("no folder of definitions (-crds)")
	}
	install(t, conformance.DefaultOptions(t).Client, *crdFolder)
}

// Aim: what Gateway API asks of an implementation, by its own tests. Flags are the suite's own (`-args -help` lists them) and those above.
func TestConformance(t *testing.T) {
	options := conformance.DefaultOptions(t)
	if *crdFolder != "" {
		install(t, options.Client, *crdFolder)
	}
	class := &gateway.GatewayClass{
		ObjectMeta: meta.ObjectMeta{Name: options.GatewayClassName},
		Spec:       gateway.GatewayClassSpec{ControllerName: gateway.GatewayController(*controller)},
	}
	if err := options.Client.Create(t.Context(), class); err != nil && !failure.IsAlreadyExists(err) {
		t.Fatalf("cannot make the GatewayClass: %v", err)
	}
	if *edge != "" {
		runEdges(t, options.Client, options.GatewayClassName, *edge)
	}
	conformance.RunConformanceWithOptions(t, options)
}

// install makes the kinds of a folder known and waits until they are served.
func install(t *testing.T, api client.Client, folder string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no CustomResourceDefinitions in %s (%v)", folder, err)
	}
	var names []string
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kind := &crds.CustomResourceDefinition{}
		if err := yaml.Unmarshal(text, kind); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		// The folder also has the policy that guards these kinds.
		if kind.Kind != "CustomResourceDefinition" {
			continue
		}
		names = append(names, kind.Name)
		if err := api.Create(t.Context(), kind); err != nil && !failure.IsAlreadyExists(err) {
			t.Fatalf("%s: %v", path, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), establishedWithin)
	defer cancel()
	for _, name := range names {
		for !established(ctx, api, name) {
			select {
			case <-ctx.Done():
				t.Fatalf("the API server does not serve %s", name)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func established(ctx context.Context, api client.Client, name string) bool {
	kind := &crds.CustomResourceDefinition{}
	if err := api.Get(ctx, client.ObjectKey{Name: name}, kind); err != nil {
		return false
	}
	for _, condition := range kind.Status.Conditions {
		if condition.Type == crds.Established && condition.Status == crds.ConditionTrue {
			return true
		}
	}
	return false
}
