// Package node plays one node of a cluster: the kubelet's part for its pods, kube-proxy's for Services and the cluster's DNS. Pure rules are
// in packages order and probe, namespaces and processes in network and box; here the API's objects meet them.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	failure "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"dev.meshwright/tests/kube-node/network"
)

// rulesPause is how long changes of Services and endpoints are gathered before the node's rules are written.
const rulesPause = 50 * time.Millisecond

// Options of a node.
type Options struct {
	Name, Zone string
	// Server is the API server's URL.
	Server string
	// State is a folder for volumes and output; pods' folders in it go with them.
	State string
	// Images is the path of the table of images.
	Images string
	Pods   [2]netip.Prefix
	// Services are the ranges that virtual addresses come from.
	Services []netip.Prefix
	// Backoff is the second wait before a container that ended is restarted (the first is none); the kubelet's is ten seconds.
	Backoff time.Duration
	// Refresh is how often volumes are brought up to date.
	Refresh time.Duration
}

// Node plays one.
type Node struct {
	options Options
	client  kubernetes.Interface
	log     *slog.Logger
	fabric  *network.Fabric
	world   world

	lock    sync.Mutex
	workers map[types.UID]*worker
	running sync.WaitGroup
}

// world is what the node knows of Services.
type world struct {
	list   corelisters.ServiceLister
	slices discoverylisters.EndpointSliceLister
	api    [2]netip.AddrPort
}

func (world *world) services() []*core.Service {
	if world.list == nil {
		return nil
	}
	services, _ := world.list.List(labels.Everything())
	return services
}

// Run plays the node until the context ends, then removes all it made.
func Run(ctx context.Context, client kubernetes.Interface, options Options, log *slog.Logger) error {
	fabric, err := network.NewFabric(options.Name, options.Pods, options.Services)
	if err != nil {
		return err
	}
	defer fabric.Close()
	node := &Node{options: options, client: client, log: log.With("node", options.Name), fabric: fabric, workers: map[types.UID]*worker{}}
	defer os.RemoveAll(options.State + "/pods")
	server, err := url.Parse(options.Server)
	if err != nil {
		return fmt.Errorf("the API server's address %q: %w", options.Server, err)
	}
	if node.world.api, err = fabric.Relay(server.Host); err != nil {
		return err
	}
	port, err := node.serve()
	if err != nil {
		return err
	}
	if err := node.follow(ctx); err != nil {
		return err
	}
	if err := node.register(ctx, port); err != nil {
		return err
	}
	node.log.Info("node ready", "pods", options.Pods[0].String(), "kubeletPort", port)
	<-ctx.Done()
	node.running.Wait()
	last, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = client.CoreV1().Nodes().Delete(last, options.Name, meta.DeleteOptions{})
	return nil
}

// follow watches what the node needs: Services and their endpoints for everybody's calls, its own pods.
func (node *Node) follow(ctx context.Context) error {
	shared := informers.NewSharedInformerFactory(node.client, 0)
	services, slices := shared.Core().V1().Services(), shared.Discovery().V1().EndpointSlices()
	node.world.list, node.world.slices = services.Lister(), slices.Lister()
	changed := make(chan struct{}, 1)
	mark := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	marks := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { mark() }, UpdateFunc: func(any, any) { mark() }, DeleteFunc: func(any) { mark() },
	}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		if _, err := informer.AddEventHandler(marks); err != nil {
			return err
		}
	}
	shared.Start(ctx.Done())
	for kind, synced := range shared.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("cannot list %s at the API server", kind)
		}
	}
	names := network.Names{Service: node.service, Slices: node.slicesOf}
	if err := names.Serve(node.fabric.Gateways); err != nil {
		return err
	}
	go node.rules(ctx, changed)
	mark()
	own := informers.NewSharedInformerFactoryWithOptions(node.client, 0, informers.WithTweakListOptions(func(options *meta.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node.options.Name).String()
	}))
	_, err := own.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(it any) { node.see(ctx, it.(*core.Pod), false) },
		UpdateFunc: func(_, it any) { node.see(ctx, it.(*core.Pod), false) },
		DeleteFunc: func(it any) {
			if unknown, is := it.(cache.DeletedFinalStateUnknown); is {
				it = unknown.Obj
			}
			if pod, is := it.(*core.Pod); is {
				node.see(ctx, pod, true)
			}
		},
	})
	own.Start(ctx.Done())
	return err
}

// see takes a version of a pod to its worker.
func (node *Node) see(ctx context.Context, pod *core.Pod, gone bool) {
	node.lock.Lock()
	defer node.lock.Unlock()
	it := node.workers[pod.UID]
	final := pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
	if it == nil {
		if gone || final && pod.DeletionTimestamp == nil || ctx.Err() != nil {
			return
		}
		it = newWorker(node, pod)
		node.workers[pod.UID] = it
		node.running.Add(1)
		go func() {
			defer node.running.Done()
			it.run(ctx)
			node.lock.Lock()
			defer node.lock.Unlock()
			delete(node.workers, pod.UID)
		}()
		return
	}
	it.see(pod, gone)
}

// rules keeps the kernel's rules at what Services and endpoints are.
func (node *Node) rules(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		time.Sleep(rulesPause)
		world := network.World{Services: node.world.services(), Slices: map[types.NamespacedName][]*discovery.EndpointSlice{}, API: node.world.api}
		all, _ := node.world.slices.List(labels.Everything())
		for _, slice := range all {
			key := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discovery.LabelServiceName]}
			world.Slices[key] = append(world.Slices[key], slice)
		}
		if err := node.fabric.Apply(world); err != nil && ctx.Err() == nil {
			node.log.Error("rules", "reason", err.Error())
		}
	}
}

func (node *Node) service(namespace, name string) *core.Service {
	service, err := node.world.list.Services(namespace).Get(name)
	if err != nil {
		return nil
	}
	return service
}

func (node *Node) slicesOf(namespace, name string) []*discovery.EndpointSlice {
	slices, _ := node.world.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: name}))
	return slices
}

// register writes the Node object.
func (node *Node) register(ctx context.Context, port int) error {
	options := node.options
	fresh := &core.Node{
		ObjectMeta: meta.ObjectMeta{Name: options.Name, Labels: map[string]string{
			core.LabelHostname: options.Name, core.LabelOSStable: "linux", core.LabelArchStable: runtime.GOARCH,
			core.LabelTopologyZone: options.Zone, core.LabelTopologyRegion: "here",
		}},
		Spec: core.NodeSpec{PodCIDR: options.Pods[0].String(), PodCIDRs: []string{options.Pods[0].String(), options.Pods[1].String()}},
	}
	nodes := node.client.CoreV1().Nodes()
	written, err := nodes.Create(ctx, fresh, meta.CreateOptions{})
	if failure.IsAlreadyExists(err) {
		if written, err = nodes.Get(ctx, options.Name, meta.GetOptions{}); err == nil {
			written.Labels, written.Spec = fresh.Labels, fresh.Spec
			written, err = nodes.Update(ctx, written, meta.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("cannot write the Node %s: %w", options.Name, err)
	}
	now := meta.Now()
	written.Status = core.NodeStatus{
		Capacity: node.capacity(), Allocatable: node.capacity(),
		Conditions: []core.NodeCondition{{
			Type: core.NodeReady, Status: core.ConditionTrue, Reason: "KubeletReady", Message: "an emulated node", LastHeartbeatTime: now, LastTransitionTime: now,
		}},
		Addresses:       []core.NodeAddress{{Type: core.NodeHostName, Address: options.Name}},
		DaemonEndpoints: core.NodeDaemonEndpoints{KubeletEndpoint: core.DaemonEndpoint{Port: int32(port)}},
		NodeInfo:        core.NodeSystemInfo{OperatingSystem: "linux", Architecture: runtime.GOARCH, KubeletVersion: "v1.36.6", ContainerRuntimeVersion: "box://1"},
	}
	for _, address := range node.addresses() {
		written.Status.Addresses = append(written.Status.Addresses, core.NodeAddress{Type: core.NodeInternalIP, Address: address})
	}
	if _, err := nodes.UpdateStatus(ctx, written, meta.UpdateOptions{}); err != nil {
		return fmt.Errorf("cannot write the status of the Node %s: %w", options.Name, err)
	}
	return nil
}

func (node *Node) capacity() core.ResourceList {
	return core.ResourceList{
		core.ResourceCPU: *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI), core.ResourceMemory: resource.MustParse("8Gi"),
		core.ResourceEphemeralStorage: resource.MustParse("8Gi"), core.ResourcePods: *resource.NewQuantity(network.PodsMax, resource.DecimalSI),
	}
}

// addresses of the node: the bridge's, from which probes come.
func (node *Node) addresses() []string {
	return []string{node.fabric.Gateways[0].String(), node.fabric.Gateways[1].String()}
}

// files that the node writes into each container: names and how they are found.
func (node *Node) files(pod *core.Pod, facts *facts) map[string]string {
	host := hostname(pod)
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if !pod.Spec.HostNetwork {
		names := host
		if pod.Spec.Subdomain != "" {
			names = fmt.Sprintf("%s.%s.%s.svc.cluster.local\t%s", host, pod.Spec.Subdomain, pod.Namespace, host)
		}
		for _, address := range facts.podIPs {
			hosts += address + "\t" + names + "\n"
		}
	}
	for _, alias := range pod.Spec.HostAliases {
		hosts += alias.IP + "\t" + strings.Join(alias.Hostnames, " ") + "\n"
	}
	servers, searches := []string{node.fabric.Gateways[0].String()}, []string{pod.Namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}
	choices := []string{"ndots:5"}
	if pod.Spec.DNSPolicy == core.DNSNone {
		servers, searches, choices = nil, nil, nil
	}
	if config := pod.Spec.DNSConfig; config != nil {
		servers, searches = append(servers, config.Nameservers...), append(searches, config.Searches...)
		for _, option := range config.Options {
			choices = append(choices, strings.TrimSuffix(option.Name+":"+valueOr(option.Value, ""), ":"))
		}
	}
	resolve := ""
	for _, server := range servers {
		resolve += "nameserver " + server + "\n"
	}
	if len(searches) > 0 {
		resolve += "search " + strings.Join(searches, " ") + "\n"
	}
	if len(choices) > 0 {
		resolve += "options " + strings.Join(choices, " ") + "\n"
	}
	return map[string]string{"/etc/hosts": hosts, "/etc/resolv.conf": resolve, "/etc/hostname": host + "\n"}
}
