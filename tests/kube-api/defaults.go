package main

import (
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What Kubernetes fills in where a manifest is silent. The published libraries do not have these rules (they are a part of Kubernetes'
// own server), so they are written here from the API's documentation.
func addDefaults(scheme *runtime.Scheme) {
	defaultsOf(scheme, func(it *corev1.Namespace) {
		if it.Name != "" {
			if it.Labels == nil {
				it.Labels = map[string]string{}
			}
			it.Labels[corev1.LabelMetadataName] = it.Name
		}
	})
	defaultsOf(scheme, func(it *corev1.Pod) {
		defaultPod(&it.Spec)
		orElse(&it.Spec.EnableServiceLinks, true)
	})
	defaultsOf(scheme, defaultService)
	defaultsOf(scheme, func(it *corev1.Secret) {
		orBlank(&it.Type, corev1.SecretTypeOpaque)
		for key, text := range it.StringData {
			if it.Data == nil {
				it.Data = map[string][]byte{}
			}
			it.Data[key] = []byte(text)
		}
		it.StringData = nil
	})
	defaultsOf(scheme, func(it *corev1.Endpoints) {
		for i := range it.Subsets {
			for j := range it.Subsets[i].Ports {
				orBlank(&it.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	})
	defaultsOf(scheme, func(it *corev1.PersistentVolumeClaim) {
		orElse(&it.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	})
	defaultsOf(scheme, func(it *discoveryv1.EndpointSlice) {
		for i := range it.Ports {
			orElse(&it.Ports[i].Name, "")
			orElse(&it.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	})
	defaultsOf(scheme, func(it *networkingv1.NetworkPolicy) {
		orNone(&it.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		if len(it.Spec.Egress) > 0 && len(it.Spec.PolicyTypes) == 1 {
			it.Spec.PolicyTypes = append(it.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
		for _, rule := range it.Spec.Ingress {
			defaultNetworkPorts(rule.Ports)
		}
		for _, rule := range it.Spec.Egress {
			defaultNetworkPorts(rule.Ports)
		}
	})
	defaultsOf(scheme, func(it *rbacv1.RoleBinding) { defaultBinding(&it.RoleRef, it.Subjects) })
	defaultsOf(scheme, func(it *rbacv1.ClusterRoleBinding) { defaultBinding(&it.RoleRef, it.Subjects) })
	defaultsOf(scheme, func(it *autoscalingv2.HorizontalPodAutoscaler) { orElse(&it.Spec.MinReplicas, 1) })
	defaultsOf(scheme, func(it *schedulingv1.PriorityClass) { orElse(&it.PreemptionPolicy, corev1.PreemptLowerPriority) })
	defaultsOf(scheme, func(it *storagev1.StorageClass) {
		orElse(&it.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
		orElse(&it.VolumeBindingMode, storagev1.VolumeBindingImmediate)
	})
	addWorkloadDefaults(scheme)
	addWebhookDefaults(scheme)
}

func addWorkloadDefaults(scheme *runtime.Scheme) {
	quarter := intstr.FromString("25%")
	defaultsOf(scheme, func(it *appsv1.Deployment) {
		orElse(&it.Spec.Replicas, 1)
		orElse(&it.Spec.RevisionHistoryLimit, 10)
		orElse(&it.Spec.ProgressDeadlineSeconds, 600)
		orBlank(&it.Spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
		if it.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
			orElse(&it.Spec.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
			orElse(&it.Spec.Strategy.RollingUpdate.MaxUnavailable, quarter)
			orElse(&it.Spec.Strategy.RollingUpdate.MaxSurge, quarter)
		}
		defaultPod(&it.Spec.Template.Spec)
	})
	defaultsOf(scheme, func(it *appsv1.ReplicaSet) {
		orElse(&it.Spec.Replicas, 1)
		defaultPod(&it.Spec.Template.Spec)
	})
	defaultsOf(scheme, func(it *appsv1.StatefulSet) {
		orElse(&it.Spec.Replicas, 1)
		orElse(&it.Spec.RevisionHistoryLimit, 10)
		orBlank(&it.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
		orBlank(&it.Spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
		if it.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
			orElse(&it.Spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
			orElse(&it.Spec.UpdateStrategy.RollingUpdate.Partition, 0)
		}
		defaultPod(&it.Spec.Template.Spec)
	})
	defaultsOf(scheme, func(it *appsv1.DaemonSet) {
		orElse(&it.Spec.RevisionHistoryLimit, 10)
		orBlank(&it.Spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
		if it.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
			orElse(&it.Spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
			orElse(&it.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
			orElse(&it.Spec.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
		}
		defaultPod(&it.Spec.Template.Spec)
	})
	defaultsOf(scheme, func(it *batchv1.Job) { defaultJob(&it.Spec) })
	defaultsOf(scheme, func(it *batchv1.CronJob) {
		orBlank(&it.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
		orElse(&it.Spec.Suspend, false)
		orElse(&it.Spec.SuccessfulJobsHistoryLimit, 3)
		orElse(&it.Spec.FailedJobsHistoryLimit, 1)
		// The job that comes of it gets its other defaults when it is created.
		defaultPod(&it.Spec.JobTemplate.Spec.Template.Spec)
	})
}

func addWebhookDefaults(scheme *runtime.Scheme) {
	scopes := func(rules []admissionregistrationv1.RuleWithOperations) {
		for i := range rules {
			orElse(&rules[i].Scope, admissionregistrationv1.AllScopes)
		}
	}
	port := func(client admissionregistrationv1.WebhookClientConfig) {
		if client.Service != nil {
			orElse(&client.Service.Port, 443)
		}
	}
	defaultsOf(scheme, func(it *admissionregistrationv1.ValidatingWebhookConfiguration) {
		for i := range it.Webhooks {
			hook := &it.Webhooks[i]
			orElse(&hook.FailurePolicy, admissionregistrationv1.Fail)
			orElse(&hook.MatchPolicy, admissionregistrationv1.Equivalent)
			orElse(&hook.NamespaceSelector, metav1.LabelSelector{})
			orElse(&hook.ObjectSelector, metav1.LabelSelector{})
			orElse(&hook.TimeoutSeconds, 10)
			port(hook.ClientConfig)
			scopes(hook.Rules)
		}
	})
	defaultsOf(scheme, func(it *admissionregistrationv1.MutatingWebhookConfiguration) {
		for i := range it.Webhooks {
			hook := &it.Webhooks[i]
			orElse(&hook.FailurePolicy, admissionregistrationv1.Fail)
			orElse(&hook.MatchPolicy, admissionregistrationv1.Equivalent)
			orElse(&hook.NamespaceSelector, metav1.LabelSelector{})
			orElse(&hook.ObjectSelector, metav1.LabelSelector{})
			orElse(&hook.TimeoutSeconds, 10)
			orElse(&hook.ReinvocationPolicy, admissionregistrationv1.NeverReinvocationPolicy)
			port(hook.ClientConfig)
			scopes(hook.Rules)
		}
	})
	resources := func(it *admissionregistrationv1.MatchResources) {
		if it == nil {
			return
		}
		orElse(&it.MatchPolicy, admissionregistrationv1.Equivalent)
		orElse(&it.NamespaceSelector, metav1.LabelSelector{})
		orElse(&it.ObjectSelector, metav1.LabelSelector{})
		for _, rules := range [][]admissionregistrationv1.NamedRuleWithOperations{it.ResourceRules, it.ExcludeResourceRules} {
			for i := range rules {
				orElse(&rules[i].Scope, admissionregistrationv1.AllScopes)
			}
		}
	}
	defaultsOf(scheme, func(it *admissionregistrationv1.ValidatingAdmissionPolicy) {
		orElse(&it.Spec.FailurePolicy, admissionregistrationv1.Fail)
		resources(it.Spec.MatchConstraints)
	})
	defaultsOf(scheme, func(it *admissionregistrationv1.ValidatingAdmissionPolicyBinding) { resources(it.Spec.MatchResources) })
	defaultsOf(scheme, func(it *admissionregistrationv1.MutatingAdmissionPolicy) {
		orElse(&it.Spec.FailurePolicy, admissionregistrationv1.Fail)
		resources(it.Spec.MatchConstraints)
	})
	defaultsOf(scheme, func(it *admissionregistrationv1.MutatingAdmissionPolicyBinding) { resources(it.Spec.MatchResources) })
}

func defaultPod(it *corev1.PodSpec) {
	orBlank(&it.RestartPolicy, corev1.RestartPolicyAlways)
	orBlank(&it.DNSPolicy, corev1.DNSClusterFirst)
	orBlank(&it.SchedulerName, corev1.DefaultSchedulerName)
	orElse(&it.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	orElse(&it.SecurityContext, corev1.PodSecurityContext{})
	// Two names of one field; the newer one counts.
	orBlank(&it.ServiceAccountName, it.DeprecatedServiceAccount)
	it.DeprecatedServiceAccount = it.ServiceAccountName
	for _, containers := range [][]corev1.Container{it.InitContainers, it.Containers} {
		for i := range containers {
			defaultContainer(&containers[i], it.HostNetwork)
		}
	}
	for i := range it.Volumes {
		defaultVolume(&it.Volumes[i].VolumeSource)
	}
}

func defaultContainer(it *corev1.Container, hostNetwork bool) {
	name := it.Image[strings.LastIndex(it.Image, "/")+1:]
	if it.ImagePullPolicy == "" {
		it.ImagePullPolicy = corev1.PullIfNotPresent
		if !strings.Contains(name, ":") || strings.HasSuffix(name, ":latest") {
			it.ImagePullPolicy = corev1.PullAlways
		}
	}
	orBlank(&it.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	orBlank(&it.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for resource, most := range it.Resources.Limits {
		if _, asked := it.Resources.Requests[resource]; !asked {
			if it.Resources.Requests == nil {
				it.Resources.Requests = corev1.ResourceList{}
			}
			it.Resources.Requests[resource] = most.DeepCopy()
		}
	}
	for i := range it.Ports {
		orBlank(&it.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			orBlank(&it.Ports[i].HostPort, it.Ports[i].ContainerPort)
		}
	}
	for _, variable := range it.Env {
		if variable.ValueFrom != nil && variable.ValueFrom.FieldRef != nil {
			orBlank(&variable.ValueFrom.FieldRef.APIVersion, "v1")
		}
	}
	for _, probe := range []*corev1.Probe{it.LivenessProbe, it.ReadinessProbe, it.StartupProbe} {
		if probe == nil {
			continue
		}
		orBlank(&probe.TimeoutSeconds, 1)
		orBlank(&probe.PeriodSeconds, 10)
		orBlank(&probe.SuccessThreshold, 1)
		orBlank(&probe.FailureThreshold, 3)
		defaultHTTPGet(probe.HTTPGet)
		if probe.GRPC != nil {
			orElse(&probe.GRPC.Service, "")
		}
	}
	if it.Lifecycle != nil {
		for _, hook := range []*corev1.LifecycleHandler{it.Lifecycle.PostStart, it.Lifecycle.PreStop} {
			if hook != nil {
				defaultHTTPGet(hook.HTTPGet)
			}
		}
	}
}

func defaultHTTPGet(it *corev1.HTTPGetAction) {
	if it != nil {
		orBlank(&it.Path, "/")
		orBlank(&it.Scheme, corev1.URISchemeHTTP)
	}
}

func defaultVolume(it *corev1.VolumeSource) {
	if *it == (corev1.VolumeSource{}) {
		it.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	fieldVersions := func(files []corev1.DownwardAPIVolumeFile) {
		for _, file := range files {
			if file.FieldRef != nil {
				orBlank(&file.FieldRef.APIVersion, "v1")
			}
		}
	}
	switch {
	case it.Secret != nil:
		orElse(&it.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	case it.ConfigMap != nil:
		orElse(&it.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	case it.DownwardAPI != nil:
		orElse(&it.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		fieldVersions(it.DownwardAPI.Items)
	case it.HostPath != nil:
		orElse(&it.HostPath.Type, corev1.HostPathUnset)
	case it.Projected != nil:
		orElse(&it.Projected.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
		for _, source := range it.Projected.Sources {
			if source.ServiceAccountToken != nil {
				orElse(&source.ServiceAccountToken.ExpirationSeconds, 3600)
			}
			if source.DownwardAPI != nil {
				fieldVersions(source.DownwardAPI.Items)
			}
		}
	}
}

func defaultService(it *corev1.Service) {
	orBlank(&it.Spec.Type, corev1.ServiceTypeClusterIP)
	orBlank(&it.Spec.SessionAffinity, corev1.ServiceAffinityNone)
	if it.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		orElse(&it.Spec.SessionAffinityConfig, corev1.SessionAffinityConfig{})
		orElse(&it.Spec.SessionAffinityConfig.ClientIP, corev1.ClientIPConfig{})
		orElse(&it.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, corev1.DefaultClientIPServiceAffinitySeconds)
	}
	if it.Spec.Type != corev1.ServiceTypeExternalName {
		orElse(&it.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if it.Spec.Type == corev1.ServiceTypeNodePort || it.Spec.Type == corev1.ServiceTypeLoadBalancer {
		orBlank(&it.Spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if it.Spec.Type == corev1.ServiceTypeLoadBalancer {
		orElse(&it.Spec.AllocateLoadBalancerNodePorts, true)
	}
	for i := range it.Spec.Ports {
		port := &it.Spec.Ports[i]
		orBlank(&port.Protocol, corev1.ProtocolTCP)
		if port.TargetPort == (intstr.IntOrString{}) || port.TargetPort == intstr.FromString("") {
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
}

func defaultJob(it *batchv1.JobSpec) {
	if it.Completions == nil && it.Parallelism == nil {
		orElse(&it.Completions, 1)
	}
	orElse(&it.Parallelism, 1)
	orElse(&it.BackoffLimit, 6)
	orElse(&it.Suspend, false)
	orElse(&it.CompletionMode, batchv1.NonIndexedCompletion)
	orElse(&it.ManualSelector, false)
	orElse(&it.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	defaultPod(&it.Template.Spec)
}

func defaultNetworkPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		orElse(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func defaultBinding(role *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	orBlank(&role.APIGroup, rbacv1.GroupName)
	for i := range subjects {
		if subjects[i].Kind != rbacv1.ServiceAccountKind {
			orBlank(&subjects[i].APIGroup, rbacv1.GroupName)
		}
	}
}

// Lists need none of their own: each item was given its defaults when it was read from the store.
func defaultsOf[T any](scheme *runtime.Scheme, fill func(*T)) {
	scheme.AddTypeDefaultingFunc(any(new(T)).(runtime.Object), func(object any) { fill(object.(*T)) })
}

func orElse[T any](place **T, value T) {
	if *place == nil {
		*place = &value
	}
}

func orBlank[T comparable](place *T, value T) {
	var blank T
	if *place == blank {
		*place = value
	}
}

func orNone[T any](place *[]T, value T) {
	if len(*place) == 0 {
		*place = []T{value}
	}
}
