package conformance

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	// standsFor is the Gateway that deploy/edge.yaml is written for.
	standsFor = "public"
	// edgesEvery is how often Gateways are looked for that have no proxy yet.
	edgesEvery = 250 * time.Millisecond
)

// edges is part of the rig and of no product: as long as the test runs it gives each Gateway of a class its own copy of a manifest, as
// somebody who installs Meshwright does by hand. With the Gateway all of it goes.
type edges struct {
	api      client.Client
	class    string
	manifest string
	// made has the ports that each Gateway's Service was given.
	made map[client.ObjectKey]string
}

// runEdges serves the Gateways of a class by a manifest of one for `public`, until the test ends.
func runEdges(t *testing.T, api client.Client, class, path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edges := edges{api: api, class: class, manifest: string(text), made: map[client.ObjectKey]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := edges.look(ctx); err != nil && ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "edges: %v\n", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(edgesEvery):
			}
		}
	}()
}

// look makes what Gateways lack.
func (edges *edges) look(ctx context.Context) error {
	gateways := &gateway.GatewayList{}
	if err := edges.api.List(ctx, gateways); err != nil {
		return err
	}
	sets := &gateway.ListenerSetList{}
	if err := edges.api.List(ctx, sets); err != nil {
		return err
	}
	for _, one := range gateways.Items {
		key := client.ObjectKeyFromObject(&one)
		ports := servicePorts(&one, sets.Items)
		made := fmt.Sprint(one.UID, ports)
		if string(one.Spec.GatewayClassName) != edges.class || one.DeletionTimestamp != nil || edges.made[key] == made {
			continue
		}
		if err := edges.make(ctx, &one, ports); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		edges.made[key] = made
	}
	return nil
}

// make gives one Gateway its proxy, or its Service the ports that the Gateway has now.
func (edges *edges) make(ctx context.Context, owner *gateway.Gateway, ports []any) error {
	text := strings.ReplaceAll(edges.manifest, standsFor, owner.Name)
	documents := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := documents.Decode(object); err != nil {
			break
		}
		if len(object.Object) == 0 {
			continue
		}
		object.SetNamespace(owner.Namespace)
		object.SetOwnerReferences([]meta.OwnerReference{*meta.NewControllerRef(owner, gateway.SchemeGroupVersion.WithKind("Gateway"))})
		if object.GetKind() == "Service" {
			if err := unstructured.SetNestedSlice(object.Object, ports, "spec", "ports"); err != nil {
				return err
			}
		}
		if err := edges.put(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// put applies an object, whether it is there or not.
func (edges *edges) put(ctx context.Context, object *unstructured.Unstructured) error {
	text, err := object.MarshalJSON()
	if err != nil {
		return err
	}
	return edges.api.Patch(ctx, object, client.RawPatch(types.ApplyPatchType, text), client.FieldOwner("edges"), client.ForceOwnership)
}

// servicePorts are the ports of a Gateway's listeners and of those that ListenerSets have for it, each once; those for datagrams are
// others than those for bytes.
func servicePorts(owner *gateway.Gateway, sets []gateway.ListenerSet) []any {
	listeners := slices.Clone(owner.Spec.Listeners)
	for _, set := range sets {
		parent := client.ObjectKey{Namespace: set.Namespace, Name: string(set.Spec.ParentRef.Name)}
		if set.Spec.ParentRef.Namespace != nil {
			parent.Namespace = string(*set.Spec.ParentRef.Namespace)
		}
		if parent != client.ObjectKeyFromObject(owner) {
			continue
		}
		for _, entry := range set.Spec.Listeners {
			listeners = append(listeners, gateway.Listener{Port: entry.Port, Protocol: entry.Protocol})
		}
	}
	var ports []any
	seen := map[string]bool{}
	for _, listener := range listeners {
		protocol := "TCP"
		if listener.Protocol == gateway.UDPProtocolType {
			protocol = "UDP"
		}
		name := fmt.Sprintf("%s-%d", strings.ToLower(protocol), listener.Port)
		if !seen[name] {
			seen[name] = true
			ports = append(ports, map[string]any{"name": name, "port": int64(listener.Port), "protocol": protocol})
		}
	}
	return ports
}
