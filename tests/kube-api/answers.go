package main

import (
	"context"
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
)

// An endpoint that answers a question and stores nothing: what was posted comes back with its status filled in.
type answer struct {
	object     runtime.Object
	namespaced bool
	fill       func(ctx context.Context, object runtime.Object) error
}

func answering[T any](namespaced bool, fill func(context.Context, *T) error) *answer {
	return &answer{any(new(T)).(runtime.Object), namespaced, func(ctx context.Context, object runtime.Object) error { return fill(ctx, any(object).(*T)) }}
}

func (a *answer) New() runtime.Object { return fresh(a.object) }

func (a *answer) Destroy() {}

func (a *answer) NamespaceScoped() bool { return a.namespaced }

func (a *answer) GetSingularName() string {
	return strings.ToLower(reflect.TypeOf(a.object).Elem().Name())
}

func (a *answer) Create(ctx context.Context, object runtime.Object, check rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	if err := check(ctx, object.DeepCopyObject()); err != nil {
		return nil, err
	}
	return object, a.fill(ctx, object)
}

// A subresource that something is posted to: an order to the object of that name.
type order struct {
	object runtime.Object
	kind   schema.GroupVersionKind
	carry  func(ctx context.Context, name string, object runtime.Object) (runtime.Object, error)
}

func ordering[T any](kind schema.GroupVersionKind, carry func(context.Context, string, *T) (runtime.Object, error)) *order {
	return &order{any(new(T)).(runtime.Object), kind, func(ctx context.Context, name string, object runtime.Object) (runtime.Object, error) {
		return carry(ctx, name, any(object).(*T))
	}}
}

func (o *order) New() runtime.Object { return fresh(o.object) }

func (o *order) Destroy() {}

func (o *order) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind { return o.kind }

func (o *order) Create(ctx context.Context, name string, object runtime.Object, check rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	if err := check(ctx, object.DeepCopyObject()); err != nil {
		return nil, err
	}
	if len(options.DryRun) > 0 {
		return object, nil
	}
	return o.carry(ctx, name, object)
}
