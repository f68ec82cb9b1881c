package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
)

func addPodEndpoints(group map[string]rest.Storage, pods, nodes *endpoint) {
	group["pods/log"] = &nodeCall{pods, nodes, "containerLogs", []string{http.MethodGet}}
	group["pods/exec"] = &nodeCall{pods, nodes, "exec", []string{http.MethodGet, http.MethodPost}}
	group["pods/attach"] = &nodeCall{pods, nodes, "attach", []string{http.MethodGet, http.MethodPost}}
	group["pods/portforward"] = &nodeCall{pods, nodes, "portForward", []string{http.MethodGet, http.MethodPost}}
	group["pods/binding"] = bind(pods)
	group["pods/eviction"] = evict(pods)
}

// A call that a pod's node answers. The request is passed on as it came (upgrades too) to the paths that a kubelet has; the difference from
// Kubernetes is that it goes as plain HTTP, for the node is a process on the same machine.
type nodeCall struct {
	pods, nodes *endpoint
	path        string
	methods     []string
}

func (e *nodeCall) New() runtime.Object { return &corev1.PodExecOptions{} }

func (e *nodeCall) Destroy() {}

func (e *nodeCall) ConnectMethods() []string { return e.methods }

// The node reads the query itself.
func (e *nodeCall) NewConnectOptions() (runtime.Object, bool, string) { return nil, false, "" }

func (e *nodeCall) Connect(ctx context.Context, name string, _ runtime.Object, responder rest.Responder) (http.Handler, error) {
	found, err := e.pods.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod := found.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest("pod " + name + " does not have a host assigned")
	}
	found, err = e.nodes.Get(ctx, pod.Spec.NodeName, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	node := found.(*corev1.Node)
	var host string
	for _, address := range node.Status.Addresses {
		if host == "" || address.Type == corev1.NodeInternalIP {
			host = address.Address
		}
	}
	port := node.Status.DaemonEndpoints.KubeletEndpoint.Port
	if host == "" || port == 0 {
		return nil, apierrors.NewServiceUnavailable("node " + node.Name + " says neither where nor whether it answers (status.addresses, status.daemonEndpoints.kubeletEndpoint)")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		container, err := containerOf(pod, query.Get("container"))
		if err != nil {
			responder.Error(err)
			return
		}
		to := &url.URL{Scheme: "http", Host: net.JoinHostPort(host, fmt.Sprint(port)), RawQuery: kubeletQuery(query, e.path).Encode()}
		to.Path = fmt.Sprintf("/%s/%s/%s", e.path, pod.Namespace, pod.Name)
		if e.path != "portForward" {
			to.Path += "/" + container
		}
		passing := proxy.NewUpgradeAwareHandler(to, http.DefaultTransport, false, false, proxy.NewErrorResponder(responder))
		// The query has been rewritten: the handler must not put the old one back.
		r.URL.RawQuery = to.RawQuery
		passing.UseRequestLocation = false
		passing.UseLocationHost = true
		passing.ServeHTTP(w, r)
	}), nil
}

// What a client calls stdin, a kubelet calls input.
func kubeletQuery(query url.Values, path string) url.Values {
	if path != "exec" && path != "attach" {
		return query
	}
	passed := url.Values{"command": query["command"]}
	for theirs, ours := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if value := query.Get(theirs); value == "true" || value == "1" {
			passed.Set(ours, "1")
		}
	}
	return passed
}

func containerOf(pod *corev1.Pod, asked string) (string, error) {
	var known []string
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if container.Name == asked {
			return asked, nil
		}
		known = append(known, container.Name)
	}
	switch {
	case asked != "":
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", asked, pod.Name))
	case len(pod.Spec.Containers) == 1:
		return pod.Spec.Containers[0].Name, nil
	}
	if named := pod.Annotations["kubectl.kubernetes.io/default-container"]; named != "" {
		return named, nil
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: %v", pod.Name, known))
}

// pods/binding: a scheduler's word on which node a pod is for.
func bind(pods *endpoint) *order {
	store := *pods.Store
	store.UpdateStrategy = binder{pods.UpdateStrategy.(strategy)}
	return ordering(core.WithKind("Binding"), func(ctx context.Context, name string, binding *corev1.Binding) (runtime.Object, error) {
		if binding.Target.Name == "" {
			return nil, apierrors.NewBadRequest("target.name is required")
		}
		_, _, err := store.Update(ctx, name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			pod := old.DeepCopyObject().(*corev1.Pod)
			if pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
				return nil, apierrors.NewConflict(pods.kind.qualified(), name, fmt.Errorf("pod is on node %s or being deleted", quoted(pod.Spec.NodeName)))
			}
			pod.Spec.NodeName = binding.Target.Name
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
				Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
			})
			return pod, nil
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
		return &metav1.Status{Status: metav1.StatusSuccess}, err
	})
}

// Lets a pod's node and status be written at once.
type binder struct{ strategy }

func (s binder) PrepareForUpdate(context.Context, runtime.Object, runtime.Object) {}

func (s binder) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}

// pods/eviction: a deletion. PodDisruptionBudgets are not asked.
func evict(pods *endpoint) *order {
	return ordering(policyv1.SchemeGroupVersion.WithKind("Eviction"), func(ctx context.Context, name string, eviction *policyv1.Eviction) (runtime.Object, error) {
		options := eviction.DeleteOptions
		if options == nil {
			options = &metav1.DeleteOptions{}
		}
		_, _, err := pods.Delete(ctx, name, rest.ValidateAllObjectFunc, options)
		return &metav1.Status{Status: metav1.StatusSuccess}, err
	})
}
