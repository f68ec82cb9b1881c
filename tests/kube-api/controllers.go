package main

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	rootConfigMap = "kube-root-ca.crt"
	// What a fresh cluster holds is made within this, or tried again.
	bootstrapCallMax = 10 * time.Second
)

// The few controllers without which the API itself would not be what clients know: what each namespace holds from its birth, and how it
// ends; and the deletion of what has lost its owners (garbage.go).
type controllers struct {
	client kubernetes.Interface
	config *rest.Config
	shared informers.SharedInformerFactory
	papers *papers
	server *server
}

func (c *controllers) run(ctx context.Context) {
	objects, err := metadata.NewForConfig(c.config)
	if err != nil {
		klog.Fatalf("cannot make the client of the controllers: %v", err)
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, 2*time.Second))
	defer queue.ShutDown()
	namespaces := c.shared.Core().V1().Namespaces().Informer()
	enqueue := func(object any) {
		if name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			queue.Add(name)
		}
	}
	_, err = namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) },
	})
	if err != nil {
		klog.Fatalf("cannot watch namespaces: %v", err)
	}
	// A deleted default account, or the authority's certificate, comes back.
	born := cache.ResourceEventHandlerFuncs{DeleteFunc: func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			if namespace, name, _ := strings.Cut(key, "/"); name == "default" || name == rootConfigMap {
				queue.Add(namespace)
			}
		}
	}}
	for _, informer := range []cache.SharedIndexInformer{c.shared.Core().V1().ServiceAccounts().Informer(), c.shared.Core().V1().ConfigMaps().Informer()} {
		if _, err := informer.AddEventHandler(born); err != nil {
			klog.Fatalf("cannot watch what each namespace holds: %v", err)
		}
	}
	c.shared.Start(ctx.Done())
	go newGarbage(c.client.Discovery(), objects).run(ctx)
	for range 2 {
		go func() {
			for {
				name, ended := queue.Get()
				if ended {
					return
				}
				if err := c.namespace(ctx, objects, name); err != nil {
					queue.AddRateLimited(name)
				} else {
					queue.Forget(name)
				}
				queue.Done(name)
			}
		}()
	}
	if err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		// A call that is never answered was seen once, right after the start: it is given up and made again.
		ctx, cancel := context.WithTimeout(ctx, bootstrapCallMax)
		defer cancel()
		if err := c.bootstrap(ctx); err != nil {
			klog.V(2).Infof("not everything of a fresh cluster is there yet: %v", err)
			return false, nil
		}
		if err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
			klog.V(2).Infof("not ready yet: %v", err)
			return false, nil
		}
		_, err := c.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil, nil
	}); err == nil {
		close(c.server.ready)
	}
	<-ctx.Done()
}

// What a fresh cluster holds: its namespaces, its own Service, and the roles that everybody has.
func (c *controllers) bootstrap(ctx context.Context) error {
	var problems []error
	made := func(err error) {
		if err != nil && !apierrors.IsAlreadyExists(err) {
			problems = append(problems, err)
		}
	}
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		_, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		made(err)
	}
	_, err := c.client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}},
		Spec:       corev1.ServiceSpec{ClusterIP: ownServiceAddress, Ports: []corev1.ServicePort{{Name: "https", Port: 443}}},
	}, metav1.CreateOptions{})
	made(err)
	at, err := url.Parse(c.papers.server)
	if err != nil {
		return err
	}
	host, text, _ := net.SplitHostPort(at.Host)
	port, _ := strconv.Atoi(text)
	family := discoveryv1.AddressTypeIPv4
	if strings.Contains(host, ":") {
		family = discoveryv1.AddressTypeIPv6
	}
	_, err = c.client.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: family, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{host}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
		Ports: []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(port))}},
	}, metav1.CreateOptions{})
	made(err)
	for _, role := range clusterRoles {
		_, err := c.client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: role.name}, Rules: role.rules}, metav1.CreateOptions{})
		made(err)
		if role.group == "" {
			continue
		}
		_, err = c.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.name}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: role.name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.GroupKind, Name: role.group}},
		}, metav1.CreateOptions{})
		made(err)
	}
	return errors.Join(problems...)
}

// The ones of Kubernetes' own that clients without further rights, and control planes, count on.
var clusterRoles = []struct {
	name, group string
	rules       []rbacv1.PolicyRule
}{
	{"cluster-admin", user.SystemPrivilegedGroup, []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}, {Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
	}},
	{"system:discovery", user.AllAuthenticated, []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{
		"/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/",
	}}}},
	{"system:basic-user", user.AllAuthenticated, []rbacv1.PolicyRule{
		{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews"}},
		{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}},
	}},
	{"system:public-info-viewer", user.AllUnauthenticated, []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/livez", "/readyz", "/version", "/version/"}}}},
	{"system:auth-delegator", "", []rbacv1.PolicyRule{
		{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}},
		{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}},
	}},
}

var errNotEmpty = errors.New("the namespace still holds objects")

// Brings one namespace to where it should be: with what it holds from its birth, or emptied and gone.
func (c *controllers) namespace(ctx context.Context, objects metadata.Interface, name string) error {
	namespace, err := c.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !namespace.DeletionTimestamp.IsZero() {
		if err := c.empty(ctx, objects, name); err != nil {
			return err
		}
		namespace.Spec.Finalizers = slices.DeleteFunc(namespace.Spec.Finalizers, func(one corev1.FinalizerName) bool { return one == corev1.FinalizerKubernetes })
		_, err := c.client.CoreV1().Namespaces().Finalize(ctx, namespace, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	}
	_, err = c.client.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = c.client.CoreV1().ConfigMaps(name).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: rootConfigMap}, Data: map[string]string{"ca.crt": string(c.papers.ca)},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

func (c *controllers) empty(ctx context.Context, objects metadata.Interface, namespace string) error {
	resources, err := resourcesOf(c.client.Discovery(), "deletecollection", "list")
	if err != nil {
		return err
	}
	left := false
	for _, resource := range resources {
		if !resource.namespaced {
			continue
		}
		at := objects.Resource(resource.GroupVersionResource).Namespace(namespace)
		err := at.DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}, metav1.ListOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		found, err := at.List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		left = left || err == nil && len(found.Items) > 0
	}
	if left {
		return errNotEmpty
	}
	return nil
}

type resource struct {
	schema.GroupVersionResource
	kind       string
	namespaced bool
}

// Everything that is served now, in its preferred version, and has these verbs. A group whose discovery fails is left for the next time.
func resourcesOf(client discovery.DiscoveryInterface, verbs ...string) ([]resource, error) {
	lists, err := client.ServerPreferredResources()
	if err != nil && len(lists) == 0 {
		return nil, err
	}
	var found []resource
	for _, list := range discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: verbs}, lists) {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, one := range list.APIResources {
			found = append(found, resource{version.WithResource(one.Name), one.Kind, one.Namespaced})
		}
	}
	return found, nil
}
