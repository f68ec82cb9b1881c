package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storeerr "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"
)

// A namespace ends in two steps: a deletion marks it, and it goes when a controller has emptied it and taken `spec.finalizers` off it
// by the finalize subresource.
type namespaceEndpoint struct{ *endpoint }

func addNamespaceEndpoints(group map[string]rest.Storage, namespaces *endpoint) {
	namespaces.ShouldDeleteDuringUpdate = func(ctx context.Context, key string, object, existing runtime.Object) bool {
		return len(object.(*corev1.Namespace).Spec.Finalizers) == 0 && registry.ShouldDeleteDuringUpdate(ctx, key, object, existing)
	}
	group["namespaces"] = &namespaceEndpoint{namespaces}
	finalize := *namespaces.Store
	finalize.UpdateStrategy = finalizing{namespaces.UpdateStrategy.(strategy)}
	group["namespaces/finalize"] = &statusEndpoint{&finalize}
}

func (e *namespaceEndpoint) Delete(ctx context.Context, name string, check rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	found, err := e.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	if namespace := found.(*corev1.Namespace); !namespace.DeletionTimestamp.IsZero() && len(namespace.Spec.Finalizers) == 0 {
		return e.Store.Delete(ctx, name, check, options)
	}
	key, err := e.KeyFunc(ctx, name)
	if err != nil {
		return nil, false, err
	}
	conditions := &storage.Preconditions{}
	if options != nil && options.Preconditions != nil {
		conditions.UID, conditions.ResourceVersion = options.Preconditions.UID, options.Preconditions.ResourceVersion
	}
	marked := e.New()
	err = e.Storage.GuaranteedUpdate(ctx, key, marked, false, conditions, storage.SimpleUpdate(func(current runtime.Object) (runtime.Object, error) {
		namespace := current.(*corev1.Namespace)
		if err := check(ctx, namespace); err != nil {
			return nil, err
		}
		if namespace.DeletionTimestamp.IsZero() {
			now := metav1.Now()
			namespace.DeletionTimestamp = &now
		}
		namespace.Status.Phase = corev1.NamespaceTerminating
		return namespace, nil
	}), options != nil && dryrun.IsDryRun(options.DryRun), nil)
	if err != nil {
		err = storeerr.InterpretUpdateError(storeerr.InterpretGetError(err, e.kind.qualified(), name), e.kind.qualified(), name)
		if _, is := err.(*apierrors.StatusError); !is {
			err = apierrors.NewInternalError(err)
		}
		return nil, false, err
	}
	return marked, false, nil
}

// Hides the store's own method, so that namespaces are not deleted by the collection: in Kubernetes they are not either.
func (e *namespaceEndpoint) DeleteCollection() {}

// Writes spec.finalizers and nothing else.
type finalizing struct{ strategy }

func (s finalizing) PrepareForUpdate(_ context.Context, object, old runtime.Object) {
	it, before := object.(*corev1.Namespace), old.(*corev1.Namespace)
	it.Status = before.Status
}
