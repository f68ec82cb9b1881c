package main

import (
	"context"
	"errors"
	"reflect"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
)

// The scale subresource of what has replicas: how many there shall be, apart from all else.
type scaleEndpoint struct{ of *endpoint }

func addScaleEndpoints(group map[string]rest.Storage, stored map[string]*endpoint) {
	for _, resource := range []string{"deployments", "replicasets", "statefulsets"} {
		group[resource+"/scale"] = &scaleEndpoint{stored[apps.WithResource(resource).GroupResource().String()]}
	}
}

func (e *scaleEndpoint) New() runtime.Object { return &autoscalingv1.Scale{} }

func (e *scaleEndpoint) Destroy() {}

func (e *scaleEndpoint) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return autoscalingv1.SchemeGroupVersion.WithKind("Scale")
}

func (e *scaleEndpoint) ConvertToTable(ctx context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return rest.NewDefaultTableConvertor(e.of.kind.qualified()).ConvertToTable(ctx, object, options)
}

func (e *scaleEndpoint) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	object, err := e.of.Get(ctx, name, options)
	if err != nil {
		return nil, err
	}
	return scaleOf(object)
}

func (e *scaleEndpoint) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, _ rest.ValidateObjectFunc,
	check rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	object, _, err := e.of.Update(ctx, name, rest.DefaultUpdatedObjectInfo(nil, func(ctx context.Context, _, old runtime.Object) (runtime.Object, error) {
		before, err := scaleOf(old)
		if err != nil {
			return nil, err
		}
		changed, err := info.UpdatedObject(ctx, before)
		if err != nil {
			return nil, err
		}
		scale, is := changed.(*autoscalingv1.Scale)
		if !is || scale.Spec.Replicas < 0 {
			return nil, apierrors.NewBadRequest("spec.replicas must be a number, 0 or more")
		}
		if version := scale.ResourceVersion; version != "" && version != before.ResourceVersion {
			return nil, apierrors.NewConflict(e.of.kind.qualified(), name, errors.New(registry.OptimisticLockErrorMsg))
		}
		if err := check(ctx, scale, before); err != nil {
			return nil, err
		}
		object := old.DeepCopyObject()
		reflect.ValueOf(object).Elem().FieldByName("Spec").FieldByName("Replicas").Set(reflect.ValueOf(&scale.Spec.Replicas))
		return object, nil
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, options)
	if err != nil {
		return nil, false, err
	}
	scale, err := scaleOf(object)
	return scale, false, err
}

func scaleOf(object runtime.Object) (*autoscalingv1.Scale, error) {
	about, it := aboutOf(object), reflect.ValueOf(object).Elem()
	selector, err := metav1.LabelSelectorAsSelector(it.FieldByName("Spec").FieldByName("Selector").Interface().(*metav1.LabelSelector))
	if err != nil {
		return nil, err
	}
	scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Name: about.GetName(), Namespace: about.GetNamespace(), UID: about.GetUID(), ResourceVersion: about.GetResourceVersion(),
		CreationTimestamp: about.GetCreationTimestamp(),
	}}
	if replicas, _ := it.FieldByName("Spec").FieldByName("Replicas").Interface().(*int32); replicas != nil {
		scale.Spec.Replicas = *replicas
	}
	scale.Status.Replicas = int32(it.FieldByName("Status").FieldByName("Replicas").Int())
	scale.Status.Selector = selector.String()
	return scale, nil
}
