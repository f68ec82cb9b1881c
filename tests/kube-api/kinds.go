package main

import (
	"reflect"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What a kind has, beyond being stored.
type trait int

const (
	namespaced trait = 1 << iota
	// The status is a subresource: writes to the object leave it, writes to the subresource leave all else.
	status
	// metadata.generation counts the changes of all that is neither metadata nor status.
	generation
	// kubectl's `get all` shows it.
	inAll
)

// One row of the table of kinds that are stored. The rules of a kind are plain functions on its type, because every kind shares one
// strategy (see strategy.go).
type kind struct {
	group    schema.GroupVersion
	resource string
	object   runtime.Object
	list     runtime.Object
	traits   trait
	short    []string
	rules    rules
}

// Each may be absent.
type rules struct {
	name           apivalidation.ValidateNameFunc
	prepare        func(object runtime.Object)
	prepareUpdate  func(object, old runtime.Object)
	validate       func(object runtime.Object) field.ErrorList
	validateUpdate func(object, old runtime.Object) field.ErrorList
	// Fields that a field selector may name, beyond metadata.name and metadata.namespace.
	fields func(object runtime.Object) fields.Set
}

func (k kind) is(trait trait) bool { return k.traits&trait != 0 }

func (k kind) name() string { return reflect.TypeOf(k.object).Elem().Name() }

func (k kind) qualified() schema.GroupResource {
	return k.group.WithResource(k.resource).GroupResource()
}

func (k kind) singular() schema.GroupResource {
	return k.group.WithResource(strings.ToLower(k.name())).GroupResource()
}

func fresh(object runtime.Object) runtime.Object {
	return reflect.New(reflect.TypeOf(object).Elem()).Interface().(runtime.Object)
}

var (
	core         = corev1.SchemeGroupVersion
	registration = admissionregistrationv1.SchemeGroupVersion
	apps         = appsv1.SchemeGroupVersion
	batch        = batchv1.SchemeGroupVersion
	network      = networkingv1.SchemeGroupVersion
	rbac         = rbacv1.SchemeGroupVersion
)

// Everything that is stored, but the custom resources and their definitions.
var kinds = []kind{
	{core, "namespaces", &corev1.Namespace{}, &corev1.NamespaceList{}, status, []string{"ns"}, namespaceRules},
	{core, "nodes", &corev1.Node{}, &corev1.NodeList{}, status, []string{"no"}, rules{}},
	{core, "pods", &corev1.Pod{}, &corev1.PodList{}, namespaced | status | generation | inAll, []string{"po"}, podRules},
	{core, "services", &corev1.Service{}, &corev1.ServiceList{}, namespaced | status | inAll, []string{"svc"}, serviceRules},
	{core, "endpoints", &corev1.Endpoints{}, &corev1.EndpointsList{}, namespaced, []string{"ep"}, rules{}},
	{core, "configmaps", &corev1.ConfigMap{}, &corev1.ConfigMapList{}, namespaced, []string{"cm"}, configMapRules},
	{core, "secrets", &corev1.Secret{}, &corev1.SecretList{}, namespaced, nil, secretRules},
	{core, "serviceaccounts", &corev1.ServiceAccount{}, &corev1.ServiceAccountList{}, namespaced, []string{"sa"}, rules{}},
	{core, "events", &corev1.Event{}, &corev1.EventList{}, namespaced, []string{"ev"}, eventRules},
	{core, "limitranges", &corev1.LimitRange{}, &corev1.LimitRangeList{}, namespaced, []string{"limits"}, rules{}},
	{core, "resourcequotas", &corev1.ResourceQuota{}, &corev1.ResourceQuotaList{}, namespaced | status, []string{"quota"}, rules{}},
	{core, "persistentvolumes", &corev1.PersistentVolume{}, &corev1.PersistentVolumeList{}, status, []string{"pv"}, rules{}},
	{core, "persistentvolumeclaims", &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolumeClaimList{}, namespaced | status, []string{"pvc"}, rules{}},
	{eventsv1.SchemeGroupVersion, "events", &eventsv1.Event{}, &eventsv1.EventList{}, namespaced, []string{"ev"}, rules{}},
	{apps, "deployments", &appsv1.Deployment{}, &appsv1.DeploymentList{}, namespaced | status | generation | inAll, []string{"deploy"}, deploymentRules},
	{apps, "replicasets", &appsv1.ReplicaSet{}, &appsv1.ReplicaSetList{}, namespaced | status | generation | inAll, []string{"rs"}, replicaSetRules},
	{apps, "statefulsets", &appsv1.StatefulSet{}, &appsv1.StatefulSetList{}, namespaced | status | generation | inAll, []string{"sts"}, statefulSetRules},
	{apps, "daemonsets", &appsv1.DaemonSet{}, &appsv1.DaemonSetList{}, namespaced | status | generation | inAll, []string{"ds"}, daemonSetRules},
	{apps, "controllerrevisions", &appsv1.ControllerRevision{}, &appsv1.ControllerRevisionList{}, namespaced, nil, rules{}},
	{batch, "jobs", &batchv1.Job{}, &batchv1.JobList{}, namespaced | status | generation | inAll, nil, jobRules},
	{batch, "cronjobs", &batchv1.CronJob{}, &batchv1.CronJobList{}, namespaced | status | generation | inAll, []string{"cj"}, cronJobRules},
	{discoveryv1.SchemeGroupVersion, "endpointslices", &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{}, namespaced | generation, nil, endpointSliceRules},
	{coordinationv1.SchemeGroupVersion, "leases", &coordinationv1.Lease{}, &coordinationv1.LeaseList{}, namespaced, nil, leaseRules},
	{registration, "mutatingwebhookconfigurations", &admissionregistrationv1.MutatingWebhookConfiguration{}, &admissionregistrationv1.MutatingWebhookConfigurationList{}, generation, nil, mutatingWebhookRules},
	{registration, "validatingwebhookconfigurations", &admissionregistrationv1.ValidatingWebhookConfiguration{}, &admissionregistrationv1.ValidatingWebhookConfigurationList{}, generation, nil, validatingWebhookRules},
	{registration, "validatingadmissionpolicies", &admissionregistrationv1.ValidatingAdmissionPolicy{}, &admissionregistrationv1.ValidatingAdmissionPolicyList{}, status | generation, nil, rules{}},
	{registration, "validatingadmissionpolicybindings", &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}, &admissionregistrationv1.ValidatingAdmissionPolicyBindingList{}, generation, nil, rules{}},
	{registration, "mutatingadmissionpolicies", &admissionregistrationv1.MutatingAdmissionPolicy{}, &admissionregistrationv1.MutatingAdmissionPolicyList{}, generation, nil, rules{}},
	{registration, "mutatingadmissionpolicybindings", &admissionregistrationv1.MutatingAdmissionPolicyBinding{}, &admissionregistrationv1.MutatingAdmissionPolicyBindingList{}, generation, nil, rules{}},
	{rbac, "roles", &rbacv1.Role{}, &rbacv1.RoleList{}, namespaced, nil, roleRules},
	{rbac, "rolebindings", &rbacv1.RoleBinding{}, &rbacv1.RoleBindingList{}, namespaced, nil, roleBindingRules},
	{rbac, "clusterroles", &rbacv1.ClusterRole{}, &rbacv1.ClusterRoleList{}, 0, nil, clusterRoleRules},
	{rbac, "clusterrolebindings", &rbacv1.ClusterRoleBinding{}, &rbacv1.ClusterRoleBindingList{}, 0, nil, clusterRoleBindingRules},
	{policyv1.SchemeGroupVersion, "poddisruptionbudgets", &policyv1.PodDisruptionBudget{}, &policyv1.PodDisruptionBudgetList{}, namespaced | status | generation, []string{"pdb"}, disruptionBudgetRules},
	{autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", &autoscalingv2.HorizontalPodAutoscaler{}, &autoscalingv2.HorizontalPodAutoscalerList{}, namespaced | status | inAll, []string{"hpa"}, autoscalerRules},
	{network, "networkpolicies", &networkingv1.NetworkPolicy{}, &networkingv1.NetworkPolicyList{}, namespaced | generation, []string{"netpol"}, networkPolicyRules},
	{network, "ingresses", &networkingv1.Ingress{}, &networkingv1.IngressList{}, namespaced | status | generation, []string{"ing"}, rules{}},
	{network, "ingressclasses", &networkingv1.IngressClass{}, &networkingv1.IngressClassList{}, generation, nil, rules{}},
	{schedulingv1.SchemeGroupVersion, "priorityclasses", &schedulingv1.PriorityClass{}, &schedulingv1.PriorityClassList{}, generation, []string{"pc"}, rules{}},
	{storagev1.SchemeGroupVersion, "storageclasses", &storagev1.StorageClass{}, &storagev1.StorageClassList{}, 0, []string{"sc"}, rules{}},
	{storagev1.SchemeGroupVersion, "csidrivers", &storagev1.CSIDriver{}, &storagev1.CSIDriverList{}, 0, nil, rules{}},
	{nodev1.SchemeGroupVersion, "runtimeclasses", &nodev1.RuntimeClass{}, &nodev1.RuntimeClassList{}, 0, nil, rules{}},
}

// The types of all built-in groups. Each is known twice: as its v1 form, which travels and is stored, and as the `__internal` form that the
// library's requests are decoded into. Both are the same Go type, so that conversion is the identity.
var (
	scheme         = runtime.NewScheme()
	codecs         serializer.CodecFactory
	parameterCodec runtime.ParameterCodec
)

func init() {
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, eventsv1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, discoveryv1.AddToScheme, coordinationv1.AddToScheme,
		admissionregistrationv1.AddToScheme, rbacv1.AddToScheme, policyv1.AddToScheme, autoscalingv2.AddToScheme,
		networkingv1.AddToScheme, schedulingv1.AddToScheme, storagev1.AddToScheme, nodev1.AddToScheme, authenticationv1.AddToScheme,
		authorizationv1.AddToScheme,
	} {
		utilruntime.Must(add(scheme))
	}
	// Of this version only what the scale subresources speak: its autoscalers would need a conversion.
	scheme.AddKnownTypes(autoscalingv1.SchemeGroupVersion, &autoscalingv1.Scale{})
	scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"},
		&metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	for known, goType := range scheme.AllKnownTypes() {
		if goType.PkgPath() == reflect.TypeFor[metav1.ObjectMeta]().PkgPath() || known.Version == runtime.APIVersionInternal {
			continue
		}
		internal := schema.GroupVersion{Group: known.Group, Version: runtime.APIVersionInternal}
		object := reflect.New(goType).Interface().(runtime.Object)
		scheme.AddKnownTypeWithName(internal.WithKind(known.Kind), object)
		utilruntime.Must(scheme.AddConversionFunc(object, object, copyInto))
	}
	for _, row := range kinds {
		if row.rules.fields == nil {
			continue
		}
		selectable := row.rules.fields(fresh(row.object))
		utilruntime.Must(scheme.AddFieldLabelConversionFunc(row.group.WithKind(row.name()), func(label, value string) (string, string, error) {
			if selectable.Has(label) {
				return label, value, nil
			}
			return runtime.DefaultMetaV1FieldSelectorConversion(label, value)
		}))
	}
	addDefaults(scheme)
	codecs = serializer.NewCodecFactory(scheme)
	parameterCodec = runtime.NewParameterCodec(scheme)
}
