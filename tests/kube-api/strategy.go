package main

import (
	"context"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// What happens to an object of any kind on its way into the store. The parts that all kinds share (status, generation) are found by
// reflection; what is a kind's own is in its rules.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	kind kind
	// Whether this is the status subresource's strategy.
	ofStatus bool
}

func (s strategy) NamespaceScoped() bool { return s.kind.is(namespaced) }

func (s strategy) AllowCreateOnUpdate() bool { return s.kind.resource == "leases" }

func (s strategy) AllowUnconditionalUpdate() bool { return true }

func (s strategy) Canonicalize(runtime.Object) {}

func (s strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }

func (s strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

func (s strategy) PrepareForCreate(_ context.Context, object runtime.Object) {
	if s.kind.is(status) {
		part := reflect.ValueOf(object).Elem().FieldByName("Status")
		part.SetZero()
	}
	if s.kind.is(generation) {
		aboutOf(object).SetGeneration(1)
	}
	if s.kind.rules.prepare != nil {
		s.kind.rules.prepare(object)
	}
}

func (s strategy) PrepareForUpdate(_ context.Context, object, old runtime.Object) {
	now, before := reflect.ValueOf(object).Elem(), reflect.ValueOf(old).Elem()
	if s.ofStatus {
		for i := range now.NumField() {
			if name := now.Type().Field(i).Name; name != "Status" && name != "ObjectMeta" && name != "TypeMeta" {
				now.Field(i).Set(before.Field(i))
			}
		}
		aboutOf(object).SetOwnerReferences(aboutOf(old).GetOwnerReferences())
		return
	}
	if s.kind.is(status) {
		now.FieldByName("Status").Set(before.FieldByName("Status"))
	}
	if s.kind.rules.prepareUpdate != nil {
		s.kind.rules.prepareUpdate(object, old)
	}
	if s.kind.is(generation) {
		aboutOf(object).SetGeneration(aboutOf(old).GetGeneration())
		for i := range now.NumField() {
			name := now.Type().Field(i).Name
			if name != "Status" && name != "ObjectMeta" && name != "TypeMeta" &&
				!equality.Semantic.DeepEqual(now.Field(i).Interface(), before.Field(i).Interface()) {
				aboutOf(object).SetGeneration(aboutOf(old).GetGeneration() + 1)
			}
		}
	}
}

func (s strategy) Validate(_ context.Context, object runtime.Object) field.ErrorList {
	name := s.kind.rules.name
	if name == nil {
		name = apivalidation.NameIsDNSSubdomain
	}
	problems := apivalidation.ValidateObjectMetaAccessor(aboutOf(object), s.NamespaceScoped(), name, field.NewPath("metadata"))
	if s.kind.rules.validate != nil {
		problems = append(problems, s.kind.rules.validate(object)...)
	}
	return problems
}

func (s strategy) ValidateUpdate(ctx context.Context, object, old runtime.Object) field.ErrorList {
	if s.ofStatus {
		return nil
	}
	problems := s.Validate(ctx, object)
	if s.kind.rules.validateUpdate != nil {
		problems = append(problems, s.kind.rules.validateUpdate(object, old)...)
	}
	return problems
}

// Tells server-side apply which fields a writer of this endpoint never owns.
func (s strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	if !s.kind.is(status) {
		return nil
	}
	part := "status"
	if s.ofStatus {
		part = "spec"
	}
	return map[fieldpath.APIVersion]*fieldpath.Set{
		fieldpath.APIVersion(s.kind.group.String()): fieldpath.NewSet(fieldpath.MakePathOrDie(part)),
	}
}

// A pod that a node has runs on until its grace ends and its node deletes it for good; every other object goes at once.
func (s strategy) CheckGracefulDelete(_ context.Context, object runtime.Object, options *metav1.DeleteOptions) bool {
	pod, is := object.(*corev1.Pod)
	if !is || options == nil {
		return false
	}
	var seconds int64
	switch {
	case pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
	case options.GracePeriodSeconds != nil:
		seconds = max(*options.GracePeriodSeconds, 0)
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *pod.Spec.TerminationGracePeriodSeconds
	}
	options.GracePeriodSeconds = &seconds
	return true
}

func (s strategy) attributes(object runtime.Object) (labels.Set, fields.Set, error) {
	about := aboutOf(object)
	selectable := fields.Set{}
	if s.kind.rules.fields != nil {
		selectable = s.kind.rules.fields(object)
	}
	selectable["metadata.name"] = about.GetName()
	if s.NamespaceScoped() {
		selectable["metadata.namespace"] = about.GetNamespace()
	}
	return about.GetLabels(), selectable, nil
}

// The endpoint of one kind.
type endpoint struct {
	*genericregistry.Store
	kind kind
}

func (e *endpoint) ShortNames() []string { return e.kind.short }

func (e *endpoint) Categories() []string {
	if e.kind.is(inAll) {
		return []string{"all"}
	}
	return nil
}

// The endpoint of one kind's status.
type statusEndpoint struct{ store *genericregistry.Store }

func (e *statusEndpoint) New() runtime.Object { return e.store.New() }

// The store belongs to the kind's own endpoint.
func (e *statusEndpoint) Destroy() {}

func (e *statusEndpoint) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return e.store.Get(ctx, name, options)
}

func (e *statusEndpoint) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, onCreate rest.ValidateObjectFunc,
	onUpdate rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return e.store.Update(ctx, name, info, onCreate, onUpdate, false, options)
}

func (e *statusEndpoint) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return e.store.GetResetFields()
}

func (e *statusEndpoint) ConvertToTable(ctx context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return e.store.ConvertToTable(ctx, object, options)
}

// Opens the store of one kind, and its status beside it where the kind has one.
func openKind(kind kind, options generic.RESTOptionsGetter) (*endpoint, *statusEndpoint, error) {
	strategy := strategy{scheme, names.SimpleNameGenerator, kind, false}
	store := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return fresh(kind.object) },
		NewListFunc:               func() runtime.Object { return fresh(kind.list) },
		DefaultQualifiedResource:  kind.qualified(),
		SingularQualifiedResource: kind.singular(),
		CreateStrategy:            strategy,
		UpdateStrategy:            strategy,
		DeleteStrategy:            strategy,
		ResetFieldsStrategy:       strategy,
		TableConvertor:            rest.NewDefaultTableConvertor(kind.qualified()),
		ReturnDeletedObject:       kind.resource == "pods" || kind.resource == "services" || kind.resource == "serviceaccounts",
	}
	if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: options, AttrFunc: strategy.attributes}); err != nil {
		return nil, nil, err
	}
	if !kind.is(status) {
		return &endpoint{store, kind}, nil, nil
	}
	ofStatus := *store
	strategy.ofStatus = true
	ofStatus.CreateStrategy, ofStatus.DeleteStrategy = nil, nil
	ofStatus.UpdateStrategy, ofStatus.ResetFieldsStrategy = strategy, strategy
	return &endpoint{store, kind}, &statusEndpoint{&ofStatus}, nil
}

// Conversion between the two names of one type.
func copyInto(from, to any, _ conversion.Scope) error {
	reflect.ValueOf(to).Elem().Set(reflect.ValueOf(from).Elem())
	return nil
}

// Every stored type has metadata: the table holds no other.
func aboutOf(object runtime.Object) metav1.Object {
	about, err := meta.Accessor(object)
	if err != nil {
		panic(err)
	}
	return about
}
