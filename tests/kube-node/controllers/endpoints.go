package controllers

import (
	"context"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/record"
	"k8s.io/endpointslice"
	"k8s.io/endpointslice/metrics"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"
)

const (
	// sliceController is the name in the slices' label `managed-by`: Kubernetes' own, which users filter by.
	sliceController   = "endpointslice-controller.k8s.io"
	endpointsPerSlice = 100
	caConfigMap       = "kube-root-ca.crt"
	defaultAccount    = "default"
)

// endpoints keeps EndpointSlices, by Kubernetes' own library for them.
type endpoints struct {
	cluster    *Cluster
	reconciler *endpointslice.Reconciler
}

func newEndpoints(_ context.Context, cluster *Cluster) (*endpoints, error) {
	metrics.RegisterMetrics()
	nodes := cluster.shared.Core().V1().Nodes().Lister()
	// Events about slices go nowhere.
	silent := &record.FakeRecorder{}
	reconciler := endpointslice.NewReconciler(cluster.client, nodes, endpointsPerSlice, sliceutil.NewEndpointSliceTracker(), nil, silent, sliceController)
	return &endpoints{cluster, reconciler}, nil
}

// of are the names of the Services that select a pod.
func (endpoints *endpoints) of(pod *core.Pod) []string {
	services, _ := endpoints.cluster.shared.Core().V1().Services().Lister().Services(pod.Namespace).List(labels.Everything())
	var names []string
	for _, service := range services {
		if len(service.Spec.Selector) > 0 && labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			names = append(names, service.Name)
		}
	}
	return names
}

// service brings one Service's slices up to date.
func (endpoints *endpoints) service(ctx context.Context, namespace, name string) (time.Duration, error) {
	cluster := endpoints.cluster
	service, err := cluster.client.CoreV1().Services(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil || service.DeletionTimestamp != nil || len(service.Spec.Selector) == 0 || service.Spec.Type == core.ServiceTypeExternalName {
		return 0, err
	}
	pods, err := cluster.shared.Core().V1().Pods().Lister().Pods(namespace).List(labels.SelectorFromSet(service.Spec.Selector))
	if err != nil {
		return 0, err
	}
	selector := labels.Set{discovery.LabelServiceName: name, discovery.LabelManagedBy: sliceController}
	list, err := cluster.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, meta.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return 0, err
	}
	var slices []*discovery.EndpointSlice
	for at := range list.Items {
		slices = append(slices, &list.Items[at])
	}
	return 0, endpoints.reconciler.Reconcile(klog.FromContext(ctx), service, pods, slices, time.Now())
}
