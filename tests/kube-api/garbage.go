package main

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// How often new kinds are looked for, and what could not be decided is tried again.
	garbageLook = time.Second
	// Between two looks at all objects, so that a burst of changes costs few of them.
	garbagePause = 50 * time.Millisecond
)

// Deletes what has lost all of its owners, and does what a deletion with propagation `Foreground` or `Orphan` waits for. One look at all
// objects at a time: for a test's few thousand that is quick enough, and easier to trust than a graph kept by increments.
type garbage struct {
	discovery discovery.DiscoveryInterface
	objects   metadata.Interface
	changed   chan struct{}

	mutex   sync.Mutex
	known   map[types.UID]*owned
	watched map[schema.GroupVersionResource]context.CancelFunc
	kinds   map[schema.GroupKind]resource
}

type owned struct {
	resource schema.GroupVersionResource
	about    *metav1.PartialObjectMetadata
}

func newGarbage(discovery discovery.DiscoveryInterface, objects metadata.Interface) *garbage {
	return &garbage{
		discovery: discovery, objects: objects, changed: make(chan struct{}, 1), known: map[types.UID]*owned{},
		watched: map[schema.GroupVersionResource]context.CancelFunc{}, kinds: map[schema.GroupKind]resource{},
	}
}

func (g *garbage) run(ctx context.Context) {
	look := time.NewTicker(garbageLook)
	defer look.Stop()
	g.watch(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			g.watch(ctx)
		case <-g.changed:
		}
		g.sweep(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(garbagePause):
		}
	}
}

// Watches every kind that is served now, and no other.
func (g *garbage) watch(ctx context.Context) {
	resources, err := resourcesOf(g.discovery, "list", "watch", "delete")
	if err != nil {
		klog.V(2).Infof("garbage collection: %v", err)
		return
	}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	served := map[schema.GroupVersionResource]bool{}
	for _, resource := range resources {
		served[resource.GroupVersionResource] = true
		g.kinds[schema.GroupKind{Group: resource.Group, Kind: resource.kind}] = resource
		if g.watched[resource.GroupVersionResource] != nil || resource.Resource == "events" {
			continue
		}
		of := resource.GroupVersionResource
		watching, stop := context.WithCancel(ctx)
		g.watched[of] = stop
		informer := metadatainformer.NewFilteredMetadataInformer(g.objects, of, "", 0, cache.Indexers{}, nil).Informer()
		err := informer.SetTransform(func(object any) (any, error) {
			if about, is := object.(*metav1.PartialObjectMetadata); is {
				about.ManagedFields, about.Annotations = nil, nil
			}
			return object, nil
		})
		if err == nil {
			_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc:    func(object any) { g.note(of, object) },
				UpdateFunc: func(_, object any) { g.note(of, object) },
				DeleteFunc: func(object any) { g.forget(object) },
			})
		}
		if err != nil {
			klog.V(2).Infof("garbage collection of %s: %v", of, err)
		}
		go informer.RunWithContext(watching)
	}
	for of, stop := range g.watched {
		if served[of] {
			continue
		}
		stop()
		delete(g.watched, of)
		for uid, one := range g.known {
			if one.resource == of {
				delete(g.known, uid)
			}
		}
	}
}

func (g *garbage) note(of schema.GroupVersionResource, object any) {
	about := object.(*metav1.PartialObjectMetadata)
	g.mutex.Lock()
	g.known[about.UID] = &owned{of, about}
	g.mutex.Unlock()
	if len(about.OwnerReferences) > 0 || about.DeletionTimestamp != nil {
		g.wake()
	}
}

func (g *garbage) forget(object any) {
	if unknown, is := object.(cache.DeletedFinalStateUnknown); is {
		object = unknown.Obj
	}
	about, is := object.(*metav1.PartialObjectMetadata)
	if !is {
		return
	}
	g.mutex.Lock()
	delete(g.known, about.UID)
	g.mutex.Unlock()
	g.wake()
}

func (g *garbage) wake() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

func (g *garbage) sweep(ctx context.Context) {
	g.mutex.Lock()
	all := make([]*owned, 0, len(g.known))
	present := make(map[types.UID]bool, len(g.known))
	dependents := map[types.UID][]*owned{}
	for uid, one := range g.known {
		all, present[uid] = append(all, one), true
		for _, owner := range one.about.OwnerReferences {
			dependents[owner.UID] = append(dependents[owner.UID], one)
		}
	}
	g.mutex.Unlock()
	for _, one := range all {
		if one.about.DeletionTimestamp != nil {
			g.finish(ctx, one, dependents[one.about.UID])
		} else if g.orphaned(ctx, one, present) {
			g.delete(ctx, one)
		}
	}
}

// Whether it had owners and none of them is there. An owner that is not known may be one that the watch has not brought yet: the server
// is asked. An owner of a kind that is not served counts as there, for nobody can say that it is not.
func (g *garbage) orphaned(ctx context.Context, one *owned, present map[types.UID]bool) bool {
	for _, owner := range one.about.OwnerReferences {
		if present[owner.UID] {
			return false
		}
		version, err := schema.ParseGroupVersion(owner.APIVersion)
		if err != nil {
			return false
		}
		g.mutex.Lock()
		of, served := g.kinds[schema.GroupKind{Group: version.Group, Kind: owner.Kind}]
		g.mutex.Unlock()
		if !served {
			return false
		}
		namespace := ""
		if of.namespaced {
			namespace = one.about.Namespace
		}
		found, err := g.objects.Resource(of.GroupVersionResource).Namespace(namespace).Get(ctx, owner.Name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) || err == nil && found.UID == owner.UID {
			return false
		}
	}
	return len(one.about.OwnerReferences) > 0
}

func (g *garbage) delete(ctx context.Context, one *owned) {
	uid := one.about.UID
	err := g.objects.Resource(one.resource).Namespace(one.about.Namespace).Delete(ctx, one.about.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: new(metav1.DeletePropagationBackground),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		klog.V(2).Infof("garbage collection of %s %s/%s: %v", one.resource.Resource, one.about.Namespace, one.about.Name, err)
	}
}

// Takes the library's finalizer off an object that waits for its dependents, once they are gone or set free.
func (g *garbage) finish(ctx context.Context, one *owned, dependents []*owned) {
	switch {
	case slices.Contains(one.about.Finalizers, metav1.FinalizerDeleteDependents):
		blocked := false
		for _, dependent := range dependents {
			if dependent.about.DeletionTimestamp == nil {
				g.delete(ctx, dependent)
			}
			blocked = blocked || slices.ContainsFunc(dependent.about.OwnerReferences, func(owner metav1.OwnerReference) bool {
				return owner.UID == one.about.UID && owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion
			})
		}
		if !blocked {
			g.patch(ctx, one, map[string]any{"finalizers": without(one.about.Finalizers, metav1.FinalizerDeleteDependents)})
		}
	case slices.Contains(one.about.Finalizers, metav1.FinalizerOrphanDependents):
		for _, dependent := range dependents {
			owners := slices.DeleteFunc(slices.Clone(dependent.about.OwnerReferences), func(owner metav1.OwnerReference) bool { return owner.UID == one.about.UID })
			if !g.patch(ctx, dependent, map[string]any{"ownerReferences": owners}) {
				return
			}
		}
		g.patch(ctx, one, map[string]any{"finalizers": without(one.about.Finalizers, metav1.FinalizerOrphanDependents)})
	}
}

// Whether it was written. What changed meanwhile is looked at again when the change arrives.
func (g *garbage) patch(ctx context.Context, one *owned, change map[string]any) bool {
	change["resourceVersion"], change["uid"] = one.about.ResourceVersion, one.about.UID
	body, err := json.Marshal(map[string]any{"metadata": change})
	if err != nil {
		return false
	}
	_, err = g.objects.Resource(one.resource).Namespace(one.about.Namespace).Patch(ctx, one.about.Name, types.MergePatchType, body, metav1.PatchOptions{})
	return err == nil || apierrors.IsNotFound(err)
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(one string) bool { return one == name })
}
