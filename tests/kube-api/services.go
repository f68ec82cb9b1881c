package main

import (
	"context"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/util/dryrun"
)

const ownServiceAddress = "10.96.0.1"

var serviceRange = netip.MustParsePrefix("10.96.0.0/12")

// Gives each Service its virtual address; node ports are not given out. What is taken is known in memory: the store is empty at each start.
type addresses struct {
	mutex sync.Mutex
	taken map[netip.Addr]bool
	next  netip.Addr
}

func addServiceAddresses(services *endpoint) {
	// A few low ones are left for those who choose their own, as Kubernetes does.
	it := &addresses{taken: map[netip.Addr]bool{}, next: netip.MustParseAddr("10.96.1.0")}
	services.BeginCreate = func(_ context.Context, object runtime.Object, options *metav1.CreateOptions) (registry.FinishFunc, error) {
		service := object.(*corev1.Service)
		if err := it.give(service); err != nil {
			return nil, err
		}
		return func(_ context.Context, created bool) {
			if !created || dryrun.IsDryRun(options.DryRun) {
				it.release(service)
			}
		}, nil
	}
	services.BeginUpdate = func(_ context.Context, object, old runtime.Object, _ *metav1.UpdateOptions) (registry.FinishFunc, error) {
		service, before := object.(*corev1.Service), old.(*corev1.Service)
		if before.Spec.ClusterIP == "" {
			if err := it.give(service); err != nil {
				return nil, err
			}
		}
		return func(context.Context, bool) {}, nil
	}
	services.AfterDelete = func(object runtime.Object, _ *metav1.DeleteOptions) { it.release(object.(*corev1.Service)) }
}

// Fills in what is missing, and refuses what another Service has.
func (a *addresses) give(service *corev1.Service) error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	it := &service.Spec
	if it.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if it.IPFamilyPolicy != nil && *it.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack {
		return invalidService(service, field.Invalid(spec.Child("ipFamilyPolicy"), *it.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	orElse(&it.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack)
	orNone(&it.IPFamilies, corev1.IPv4Protocol)
	if len(it.ClusterIPs) > 0 {
		orBlank(&it.ClusterIP, it.ClusterIPs[0])
	}
	switch it.ClusterIP {
	case corev1.ClusterIPNone:
	case "":
		for a.taken[a.next] {
			a.next = a.next.Next()
		}
		it.ClusterIP = a.next.String()
		a.taken[a.next] = true
	default:
		if len(it.ClusterIPs) > 0 && service.ResourceVersion != "" {
			break // An update keeps what it has.
		}
		chosen, err := netip.ParseAddr(it.ClusterIP)
		switch {
		case err != nil || !serviceRange.Contains(chosen):
			return invalidService(service, field.Invalid(spec.Child("clusterIPs"), it.ClusterIP, "failed to allocate IP "+it.ClusterIP+": the provided network does not match the current range"))
		case a.taken[chosen]:
			return invalidService(service, field.Invalid(spec.Child("clusterIPs"), it.ClusterIP, "failed to allocate IP "+it.ClusterIP+": provided IP is already allocated"))
		}
		a.taken[chosen] = true
	}
	it.ClusterIPs = []string{it.ClusterIP}
	return nil
}

func (a *addresses) release(service *corev1.Service) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if given, err := netip.ParseAddr(service.Spec.ClusterIP); err == nil {
		delete(a.taken, given)
	}
}

// A writer that does not know what the Service was given keeps it.
func keepServiceAddresses(object, old runtime.Object) {
	it, before := &object.(*corev1.Service).Spec, &old.(*corev1.Service).Spec
	if it.Type == corev1.ServiceTypeExternalName || before.Type == corev1.ServiceTypeExternalName {
		return
	}
	orBlank(&it.ClusterIP, before.ClusterIP)
	if it.ClusterIP == before.ClusterIP && len(it.ClusterIPs) == 0 {
		it.ClusterIPs = before.ClusterIPs
	}
	if it.IPFamilyPolicy == nil {
		it.IPFamilyPolicy = before.IPFamilyPolicy
	}
	if len(it.IPFamilies) == 0 {
		it.IPFamilies = before.IPFamilies
	}
}

func invalidService(service *corev1.Service, problem *field.Error) error {
	return apierrors.NewInvalid(core.WithKind("Service").GroupKind(), service.Name, field.ErrorList{problem})
}
