package main

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/util/webhook"
)

// The rules of each kind that mistakes in a manifest, or in a controller, are caught by. They are a part of what Kubernetes checks, in its
// words where a reader of the error would know them; a field that no rule here names is taken as it comes.
var (
	spec = field.NewPath("spec")

	namespaceRules = rules{
		name: apivalidation.ValidateNamespaceName,
		prepare: func(object runtime.Object) {
			it := object.(*corev1.Namespace)
			it.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
			it.Status.Phase = corev1.NamespaceActive
		},
		fields: func(object runtime.Object) fields.Set {
			return fields.Set{"status.phase": string(object.(*corev1.Namespace).Status.Phase)}
		},
	}
	configMapRules = rules{validate: checked(func(it *corev1.ConfigMap) field.ErrorList {
		return checkData(it.Data)
	})}
	secretRules = rules{
		validate: checked(func(it *corev1.Secret) (problems field.ErrorList) {
			if it.Type == corev1.SecretTypeTLS {
				for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
					if _, has := it.Data[key]; !has {
						problems = append(problems, field.Required(field.NewPath("data").Key(key), ""))
					}
				}
			}
			return append(problems, checkData(it.Data)...)
		}),
		validateUpdate: compared(func(it, old *corev1.Secret) (problems field.ErrorList) {
			problems = append(problems, apivalidation.ValidateImmutableField(it.Type, old.Type, field.NewPath("type"))...)
			if old.Immutable != nil && *old.Immutable {
				problems = append(problems, apivalidation.ValidateImmutableField(it.Data, old.Data, field.NewPath("data"))...)
			}
			return problems
		}),
		fields: func(object runtime.Object) fields.Set {
			return fields.Set{"type": string(object.(*corev1.Secret).Type)}
		},
	}
	eventRules = rules{fields: func(object runtime.Object) fields.Set {
		it := object.(*corev1.Event)
		return fields.Set{
			"involvedObject.kind": it.InvolvedObject.Kind, "involvedObject.name": it.InvolvedObject.Name,
			"involvedObject.namespace": it.InvolvedObject.Namespace, "involvedObject.uid": string(it.InvolvedObject.UID),
			"reason": it.Reason, "type": it.Type,
		}
	}}
	serviceRules = rules{
		name: apivalidation.NameIsDNS1035Label, prepareUpdate: keepServiceAddresses,
		validate: checked(checkService), validateUpdate: compared(checkServiceChange),
	}
	deploymentRules = workload(func(it *appsv1.Deployment) (*metav1.LabelSelector, *corev1.PodTemplateSpec, *int32) {
		return it.Spec.Selector, &it.Spec.Template, it.Spec.Replicas
	})
	replicaSetRules = workload(func(it *appsv1.ReplicaSet) (*metav1.LabelSelector, *corev1.PodTemplateSpec, *int32) {
		return it.Spec.Selector, &it.Spec.Template, it.Spec.Replicas
	})
	statefulSetRules = workload(func(it *appsv1.StatefulSet) (*metav1.LabelSelector, *corev1.PodTemplateSpec, *int32) {
		return it.Spec.Selector, &it.Spec.Template, it.Spec.Replicas
	})
	daemonSetRules = workload(func(it *appsv1.DaemonSet) (*metav1.LabelSelector, *corev1.PodTemplateSpec, *int32) {
		return it.Spec.Selector, &it.Spec.Template, nil
	})
	jobRules = rules{
		prepare: func(object runtime.Object) { selectOwnPods(object.(*batchv1.Job)) },
		validate: checked(func(it *batchv1.Job) field.ErrorList {
			return checkJob(&it.Spec, spec)
		}),
		validateUpdate: compared(func(it, old *batchv1.Job) field.ErrorList {
			if it.Spec.Suspend != nil && *it.Spec.Suspend {
				return nil
			}
			return apivalidation.ValidateImmutableField(it.Spec.Template, old.Spec.Template, spec.Child("template"))
		}),
	}
	cronJobRules = rules{validate: checked(func(it *batchv1.CronJob) (problems field.ErrorList) {
		if it.Spec.Schedule == "" {
			problems = append(problems, field.Required(spec.Child("schedule"), ""))
		}
		return append(problems, checkJob(&it.Spec.JobTemplate.Spec, spec.Child("jobTemplate", "spec"))...)
	})}
	endpointSliceRules = rules{
		validate: checked(func(it *discoveryv1.EndpointSlice) (problems field.ErrorList) {
			if !slices.Contains([]discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN}, it.AddressType) {
				problems = append(problems, field.NotSupported(field.NewPath("addressType"), it.AddressType, []string{"IPv4", "IPv6", "FQDN"}))
			}
			if len(it.Endpoints) > 1000 {
				problems = append(problems, field.TooMany(field.NewPath("endpoints"), len(it.Endpoints), 1000))
			}
			for i, one := range it.Endpoints {
				at := field.NewPath("endpoints").Index(i).Child("addresses")
				if len(one.Addresses) == 0 {
					problems = append(problems, field.Required(at, "must contain at least 1 item"))
				}
				for j, address := range one.Addresses {
					parsed, err := netip.ParseAddr(address)
					if it.AddressType != discoveryv1.AddressTypeFQDN && (err != nil || parsed.Is4() != (it.AddressType == discoveryv1.AddressTypeIPv4)) {
						problems = append(problems, field.Invalid(at.Index(j), address, "must be a valid "+string(it.AddressType)+" address"))
					}
				}
			}
			return problems
		}),
		validateUpdate: compared(func(it, old *discoveryv1.EndpointSlice) field.ErrorList {
			return apivalidation.ValidateImmutableField(it.AddressType, old.AddressType, field.NewPath("addressType"))
		}),
	}
	leaseRules = rules{validate: checked(func(it *coordinationv1.Lease) (problems field.ErrorList) {
		if it.Spec.LeaseDurationSeconds != nil && *it.Spec.LeaseDurationSeconds <= 0 {
			problems = append(problems, field.Invalid(spec.Child("leaseDurationSeconds"), *it.Spec.LeaseDurationSeconds, "must be greater than 0"))
		}
		return problems
	})}
	mutatingWebhookRules = rules{validate: checked(func(it *admissionregistrationv1.MutatingWebhookConfiguration) field.ErrorList {
		return checkWebhooks(commonParts(it.Webhooks))
	})}
	validatingWebhookRules = rules{validate: checked(func(it *admissionregistrationv1.ValidatingWebhookConfiguration) field.ErrorList {
		return checkWebhooks(it.Webhooks)
	})}
	roleRules = rules{name: path.ValidatePathSegmentName, validate: checked(func(it *rbacv1.Role) field.ErrorList {
		return checkPolicyRules(it.Rules, true)
	})}
	clusterRoleRules = rules{name: path.ValidatePathSegmentName, validate: checked(func(it *rbacv1.ClusterRole) field.ErrorList {
		return checkPolicyRules(it.Rules, false)
	})}
	roleBindingRules = rules{name: path.ValidatePathSegmentName,
		validate: checked(func(it *rbacv1.RoleBinding) field.ErrorList { return checkBinding(it.RoleRef, it.Subjects, true) }),
		validateUpdate: compared(func(it, old *rbacv1.RoleBinding) field.ErrorList {
			return apivalidation.ValidateImmutableField(it.RoleRef, old.RoleRef, field.NewPath("roleRef"))
		})}
	clusterRoleBindingRules = rules{name: path.ValidatePathSegmentName,
		validate: checked(func(it *rbacv1.ClusterRoleBinding) field.ErrorList {
			return checkBinding(it.RoleRef, it.Subjects, false)
		}),
		validateUpdate: compared(func(it, old *rbacv1.ClusterRoleBinding) field.ErrorList {
			return apivalidation.ValidateImmutableField(it.RoleRef, old.RoleRef, field.NewPath("roleRef"))
		})}
	disruptionBudgetRules = rules{validate: checked(func(it *policyv1.PodDisruptionBudget) (problems field.ErrorList) {
		if it.Spec.MinAvailable != nil && it.Spec.MaxUnavailable != nil {
			problems = append(problems, field.Invalid(spec, "", "minAvailable and maxUnavailable cannot be both set"))
		}
		return append(problems, selects(spec.Child("selector"), it.Spec.Selector)...)
	})}
	autoscalerRules = rules{validate: checked(func(it *autoscalingv2.HorizontalPodAutoscaler) (problems field.ErrorList) {
		if it.Spec.MaxReplicas < 1 || it.Spec.MinReplicas != nil && it.Spec.MaxReplicas < *it.Spec.MinReplicas {
			problems = append(problems, field.Invalid(spec.Child("maxReplicas"), it.Spec.MaxReplicas, "must be greater than or equal to `minReplicas`"))
		}
		if it.Spec.ScaleTargetRef.Kind == "" || it.Spec.ScaleTargetRef.Name == "" {
			problems = append(problems, field.Required(spec.Child("scaleTargetRef"), "kind and name"))
		}
		return problems
	})}
	networkPolicyRules = rules{validate: checked(func(it *networkingv1.NetworkPolicy) field.ErrorList {
		return selects(spec.Child("podSelector"), &it.Spec.PodSelector)
	})}
)

func checkService(it *corev1.Service) (problems field.ErrorList) {
	at := spec.Child("ports")
	if len(it.Spec.Ports) == 0 && it.Spec.ClusterIP != corev1.ClusterIPNone && it.Spec.Type != corev1.ServiceTypeExternalName {
		problems = append(problems, field.Required(at, ""))
	}
	types := []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName}
	if !slices.Contains(types, it.Spec.Type) {
		problems = append(problems, field.NotSupported(spec.Child("type"), it.Spec.Type, types))
	}
	if it.Spec.Type == corev1.ServiceTypeExternalName && len(validation.IsDNS1123Subdomain(it.Spec.ExternalName)) > 0 {
		problems = append(problems, field.Invalid(spec.Child("externalName"), it.Spec.ExternalName, "must be a DNS name"))
	}
	var names, numbers []string
	for i, port := range it.Spec.Ports {
		numbers = append(numbers, fmt.Sprint(port.Port, "/", port.Protocol))
		names = append(names, port.Name)
		if len(it.Spec.Ports) > 1 && port.Name == "" {
			problems = append(problems, field.Required(at.Index(i).Child("name"), ""))
		} else if port.Name != "" {
			problems = append(problems, named(at.Index(i).Child("name"), port.Name, validation.IsDNS1123Label)...)
		}
		problems = append(problems, numbered(at.Index(i).Child("port"), port.Port)...)
		problems = append(problems, protocol(at.Index(i).Child("protocol"), port.Protocol)...)
		problems = append(problems, portRef(at.Index(i).Child("targetPort"), port.TargetPort)...)
		if port.AppProtocol != nil {
			problems = append(problems, named(at.Index(i).Child("appProtocol"), *port.AppProtocol, validation.IsQualifiedName)...)
		}
	}
	if len(names) > 1 {
		problems = append(problems, distinct(at, names)...)
	}
	return append(problems, distinct(at, numbers)...)
}

func checkServiceChange(it, old *corev1.Service) field.ErrorList {
	if it.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	return apivalidation.ValidateImmutableField(it.Spec.ClusterIP, old.Spec.ClusterIP, spec.Child("clusterIP"))
}

func workload[T any](parts func(*T) (*metav1.LabelSelector, *corev1.PodTemplateSpec, *int32)) rules {
	return rules{
		validate: checked(func(it *T) field.ErrorList { return checkWorkload(parts(it)) }),
		validateUpdate: compared(func(it, old *T) field.ErrorList {
			now, _, _ := parts(it)
			before, _, _ := parts(old)
			return apivalidation.ValidateImmutableField(now, before, spec.Child("selector"))
		}),
	}
}

func checkWorkload(selector *metav1.LabelSelector, template *corev1.PodTemplateSpec, replicas *int32) (problems field.ErrorList) {
	at := spec.Child("selector")
	switch {
	case selector == nil:
		problems = append(problems, field.Required(at, ""))
	case len(selector.MatchLabels)+len(selector.MatchExpressions) == 0:
		problems = append(problems, field.Invalid(at, selector, "empty selector is invalid for deployment"))
	default:
		problems = append(problems, selects(at, selector)...)
		if which, err := metav1.LabelSelectorAsSelector(selector); err == nil && !which.Matches(labels.Set(template.Labels)) {
			problems = append(problems, field.Invalid(spec.Child("template", "metadata", "labels"), template.Labels, "`selector` does not match template `labels`"))
		}
	}
	if replicas != nil && *replicas < 0 {
		problems = append(problems, field.Invalid(spec.Child("replicas"), *replicas, "must be greater than or equal to 0"))
	}
	if template.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		problems = append(problems, field.NotSupported(spec.Child("template", "spec", "restartPolicy"), template.Spec.RestartPolicy, []string{"Always"}))
	}
	problems = append(problems, metavalidation.ValidateLabels(template.Labels, spec.Child("template", "metadata", "labels"))...)
	return append(problems, checkPodSpec(&template.Spec, spec.Child("template", "spec"))...)
}

func checkJob(job *batchv1.JobSpec, at *field.Path) (problems field.ErrorList) {
	if restart := job.Template.Spec.RestartPolicy; restart != corev1.RestartPolicyNever && restart != corev1.RestartPolicyOnFailure {
		problems = append(problems, field.Required(at.Child("template", "spec", "restartPolicy"), `valid values: "OnFailure", "Never"`))
	}
	return append(problems, checkPodSpec(&job.Template.Spec, at.Child("template", "spec"))...)
}

// A job's pods are found by its UID, unless its author chose.
func selectOwnPods(it *batchv1.Job) {
	if it.Spec.ManualSelector != nil && *it.Spec.ManualSelector {
		return
	}
	if it.Spec.Template.Labels == nil {
		it.Spec.Template.Labels = map[string]string{}
	}
	for _, prefix := range []string{"", "batch.kubernetes.io/"} {
		it.Spec.Template.Labels[prefix+"controller-uid"] = string(it.UID)
		it.Spec.Template.Labels[prefix+"job-name"] = it.Name
	}
	it.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: string(it.UID)}}
}

// Both kinds of webhooks have what is checked here; one of them has a field more.
func commonParts(hooks []admissionregistrationv1.MutatingWebhook) []admissionregistrationv1.ValidatingWebhook {
	common := make([]admissionregistrationv1.ValidatingWebhook, len(hooks))
	for i := range hooks {
		from, to := reflect.ValueOf(hooks[i]), reflect.ValueOf(&common[i]).Elem()
		for j := range to.NumField() {
			to.Field(j).Set(from.FieldByName(to.Type().Field(j).Name))
		}
	}
	return common
}

func checkWebhooks(hooks []admissionregistrationv1.ValidatingWebhook) (problems field.ErrorList) {
	var names []string
	for i, hook := range hooks {
		at := field.NewPath("webhooks").Index(i)
		names = append(names, hook.Name)
		problems = append(problems, validation.IsFullyQualifiedName(at.Child("name"), hook.Name)...)
		if effects := hook.SideEffects; effects == nil {
			problems = append(problems, field.Required(at.Child("sideEffects"), "must specify one of None, NoneOnDryRun"))
		} else if *effects != admissionregistrationv1.SideEffectClassNone && *effects != admissionregistrationv1.SideEffectClassNoneOnDryRun {
			problems = append(problems, field.NotSupported(at.Child("sideEffects"), *effects, []string{"None", "NoneOnDryRun"}))
		}
		if seconds := hook.TimeoutSeconds; seconds != nil && (*seconds < 1 || *seconds > 30) {
			problems = append(problems, field.Invalid(at.Child("timeoutSeconds"), *seconds, "the timeout value must be between 1 and 30 seconds"))
		}
		if versions := hook.AdmissionReviewVersions; !slices.Contains(versions, "v1") && !slices.Contains(versions, "v1beta1") {
			problems = append(problems, field.Invalid(at.Child("admissionReviewVersions"), versions, "must include at least one of v1, v1beta1"))
		}
		client := hook.ClientConfig
		switch at := at.Child("clientConfig"); {
		case (client.URL == nil) == (client.Service == nil):
			problems = append(problems, field.Required(at, "exactly one of url or service is required"))
		case client.URL != nil:
			problems = append(problems, webhook.ValidateWebhookURL(at.Child("url"), *client.URL, true)...)
		default:
			problems = append(problems, webhook.ValidateWebhookService(at.Child("service"), client.Service.Name, client.Service.Namespace, client.Service.Path, *client.Service.Port)...)
		}
		problems = append(problems, webhook.ValidateCABundle(at.Child("clientConfig", "caBundle"), client.CABundle)...)
		for j, rule := range hook.Rules {
			if len(rule.Operations) == 0 || len(rule.APIGroups) == 0 || len(rule.APIVersions) == 0 || len(rule.Resources) == 0 {
				problems = append(problems, field.Required(at.Child("rules").Index(j), "operations, apiGroups, apiVersions and resources"))
			}
		}
		problems = append(problems, selects(at.Child("namespaceSelector"), hook.NamespaceSelector)...)
		problems = append(problems, selects(at.Child("objectSelector"), hook.ObjectSelector)...)
	}
	return append(problems, distinct(field.NewPath("webhooks"), names)...)
}

func checkPolicyRules(rules []rbacv1.PolicyRule, namespaced bool) (problems field.ErrorList) {
	for i, rule := range rules {
		at := field.NewPath("rules").Index(i)
		switch {
		case len(rule.Verbs) == 0:
			problems = append(problems, field.Required(at.Child("verbs"), "verbs must contain at least one value"))
		case len(rule.NonResourceURLs) > 0 && namespaced:
			problems = append(problems, field.Invalid(at.Child("nonResourceURLs"), rule.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
		case len(rule.NonResourceURLs) > 0 && len(rule.APIGroups)+len(rule.Resources)+len(rule.ResourceNames) > 0:
			problems = append(problems, field.Invalid(at.Child("nonResourceURLs"), rule.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		case len(rule.NonResourceURLs) == 0 && len(rule.APIGroups) == 0:
			problems = append(problems, field.Required(at.Child("apiGroups"), "resource rules must supply at least one api group"))
		case len(rule.NonResourceURLs) == 0 && len(rule.Resources) == 0:
			problems = append(problems, field.Required(at.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return problems
}

func checkBinding(role rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool) (problems field.ErrorList) {
	if role.Kind != "ClusterRole" && !(namespaced && role.Kind == "Role") {
		problems = append(problems, field.NotSupported(field.NewPath("roleRef", "kind"), role.Kind, []string{"Role", "ClusterRole"}))
	}
	if role.Name == "" {
		problems = append(problems, field.Required(field.NewPath("roleRef", "name"), ""))
	}
	for i, subject := range subjects {
		at := field.NewPath("subjects").Index(i)
		if subject.Name == "" {
			problems = append(problems, field.Required(at.Child("name"), ""))
		}
		if subject.Kind == rbacv1.ServiceAccountKind && subject.Namespace == "" {
			problems = append(problems, field.Required(at.Child("namespace"), ""))
		}
	}
	return problems
}

// Small rules that the ones above are made of.

func checked[T any](check func(*T) field.ErrorList) func(runtime.Object) field.ErrorList {
	return func(object runtime.Object) field.ErrorList { return check(any(object).(*T)) }
}

func compared[T any](check func(it, old *T) field.ErrorList) func(object, old runtime.Object) field.ErrorList {
	return func(object, old runtime.Object) field.ErrorList { return check(any(object).(*T), any(old).(*T)) }
}

func named(at *field.Path, name string, form func(string) []string) (problems field.ErrorList) {
	for _, wrong := range form(name) {
		problems = append(problems, field.Invalid(at, name, wrong))
	}
	return problems
}

func checkData[V ~string | ~[]byte](data map[string]V) (problems field.ErrorList) {
	bytes := 0
	for key, value := range data {
		bytes += len(value)
		problems = append(problems, named(field.NewPath("data").Key(key), key, validation.IsConfigMapKey)...)
	}
	if bytes > corev1.MaxSecretSize {
		problems = append(problems, field.TooLong(field.NewPath("data"), "", corev1.MaxSecretSize))
	}
	return problems
}

func numbered(at *field.Path, port int32) (problems field.ErrorList) {
	for _, wrong := range validation.IsValidPortNum(int(port)) {
		problems = append(problems, field.Invalid(at, port, wrong))
	}
	return problems
}

func protocol(at *field.Path, protocol corev1.Protocol) field.ErrorList {
	if protocol != corev1.ProtocolTCP && protocol != corev1.ProtocolUDP && protocol != corev1.ProtocolSCTP {
		return field.ErrorList{field.NotSupported(at, protocol, []string{"TCP", "UDP", "SCTP"})}
	}
	return nil
}

func selects(at *field.Path, selector *metav1.LabelSelector) field.ErrorList {
	return metavalidation.ValidateLabelSelector(selector, metavalidation.LabelSelectorValidationOptions{}, at)
}

func distinct(at *field.Path, names []string) (problems field.ErrorList) {
	seen := map[string]bool{}
	for i, name := range names {
		if seen[name] {
			problems = append(problems, field.Duplicate(at.Index(i), name))
		}
		seen[name] = true
	}
	return problems
}

func same(it, old any) bool { return equality.Semantic.DeepEqual(it, old) }

func quoted(name string) string { return strconv.Quote(name) }
