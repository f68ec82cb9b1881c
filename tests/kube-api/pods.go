package main

import (
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var podRules = rules{
	prepare: func(object runtime.Object) {
		it := object.(*corev1.Pod)
		it.Status.Phase = corev1.PodPending
		it.Status.QOSClass = qualityOfService(&it.Spec)
	},
	validate: checked(func(it *corev1.Pod) field.ErrorList { return checkPodSpec(&it.Spec, spec) }),
	validateUpdate: compared(func(it, old *corev1.Pod) field.ErrorList {
		// What a running pod lets change; the node's name is set once, by the binding.
		then := it.Spec.DeepCopy()
		for i := range min(len(then.Containers), len(old.Spec.Containers)) {
			then.Containers[i].Image = old.Spec.Containers[i].Image
		}
		for i := range min(len(then.InitContainers), len(old.Spec.InitContainers)) {
			then.InitContainers[i].Image = old.Spec.InitContainers[i].Image
		}
		then.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
		then.Tolerations = old.Spec.Tolerations
		then.TerminationGracePeriodSeconds = old.Spec.TerminationGracePeriodSeconds
		if !same(then, &old.Spec) {
			return field.ErrorList{field.Forbidden(spec, "pod updates may not change fields other than `spec.containers[*].image`,"+
				"`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"+
				"`spec.terminationGracePeriodSeconds`")}
		}
		return nil
	}),
	fields: func(object runtime.Object) fields.Set {
		it := object.(*corev1.Pod)
		return fields.Set{
			"spec.nodeName": it.Spec.NodeName, "spec.restartPolicy": string(it.Spec.RestartPolicy), "spec.schedulerName": it.Spec.SchedulerName,
			"spec.serviceAccountName": it.Spec.ServiceAccountName, "status.phase": string(it.Status.Phase), "status.podIP": it.Status.PodIP,
		}
	},
}

func checkPodSpec(it *corev1.PodSpec, at *field.Path) (problems field.ErrorList) {
	if !slices.Contains([]corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}, it.RestartPolicy) {
		problems = append(problems, field.NotSupported(at.Child("restartPolicy"), it.RestartPolicy, []string{"Always", "OnFailure", "Never"}))
	}
	if !slices.Contains([]corev1.DNSPolicy{corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone}, it.DNSPolicy) {
		problems = append(problems, field.NotSupported(at.Child("dnsPolicy"), it.DNSPolicy, []string{"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"}))
	}
	if seconds := it.TerminationGracePeriodSeconds; seconds != nil && *seconds < 0 {
		problems = append(problems, field.Invalid(at.Child("terminationGracePeriodSeconds"), *seconds, "must be greater than or equal to 0"))
	}
	if it.ServiceAccountName != "" {
		problems = append(problems, named(at.Child("serviceAccountName"), it.ServiceAccountName, validation.IsDNS1123Subdomain)...)
	}
	var volumes []string
	for i := range it.Volumes {
		volumes = append(volumes, it.Volumes[i].Name)
		problems = append(problems, checkVolume(&it.Volumes[i], at.Child("volumes").Index(i))...)
	}
	problems = append(problems, distinct(at.Child("volumes"), volumes)...)
	if len(it.Containers) == 0 {
		problems = append(problems, field.Required(at.Child("containers"), ""))
	}
	var names []string
	for i := range it.InitContainers {
		names = append(names, it.InitContainers[i].Name)
		problems = append(problems, checkContainer(&it.InitContainers[i], volumes, true, at.Child("initContainers").Index(i))...)
	}
	for i := range it.Containers {
		names = append(names, it.Containers[i].Name)
		problems = append(problems, checkContainer(&it.Containers[i], volumes, false, at.Child("containers").Index(i))...)
	}
	return append(problems, distinct(at.Child("containers"), names)...)
}

func checkVolume(it *corev1.Volume, at *field.Path) (problems field.ErrorList) {
	problems = append(problems, named(at.Child("name"), it.Name, validation.IsDNS1123Label)...)
	if given(it.VolumeSource) != 1 {
		problems = append(problems, field.Forbidden(at, "a volume has exactly one type"))
	}
	switch {
	case it.Secret != nil && it.Secret.SecretName == "":
		problems = append(problems, field.Required(at.Child("secret", "secretName"), ""))
	case it.ConfigMap != nil && it.ConfigMap.Name == "":
		problems = append(problems, field.Required(at.Child("configMap", "name"), ""))
	case it.HostPath != nil && it.HostPath.Path == "":
		problems = append(problems, field.Required(at.Child("hostPath", "path"), ""))
	case it.Projected != nil:
		for i, source := range it.Projected.Sources {
			at := at.Child("projected", "sources").Index(i)
			if token := source.ServiceAccountToken; token != nil {
				if token.Path == "" {
					problems = append(problems, field.Required(at.Child("serviceAccountToken", "path"), ""))
				}
				if token.ExpirationSeconds != nil && *token.ExpirationSeconds < 600 {
					problems = append(problems, field.Invalid(at.Child("serviceAccountToken", "expirationSeconds"), *token.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
				}
			}
		}
	}
	return problems
}

func checkContainer(it *corev1.Container, volumes []string, initial bool, at *field.Path) (problems field.ErrorList) {
	if it.Name == "" {
		problems = append(problems, field.Required(at.Child("name"), ""))
	} else {
		problems = append(problems, named(at.Child("name"), it.Name, validation.IsDNS1123Label)...)
	}
	if it.Image == "" {
		problems = append(problems, field.Required(at.Child("image"), ""))
	}
	stays := it.RestartPolicy != nil && *it.RestartPolicy == corev1.ContainerRestartPolicyAlways
	if it.RestartPolicy != nil && !(initial && stays) {
		problems = append(problems, field.NotSupported(at.Child("restartPolicy"), *it.RestartPolicy, []string{"Always"}))
	}
	var ports []string
	for i, port := range it.Ports {
		at := at.Child("ports").Index(i)
		problems = append(problems, numbered(at.Child("containerPort"), port.ContainerPort)...)
		problems = append(problems, protocol(at.Child("protocol"), port.Protocol)...)
		if port.Name != "" {
			ports = append(ports, port.Name)
			problems = append(problems, named(at.Child("name"), port.Name, validation.IsValidPortName)...)
		}
	}
	problems = append(problems, distinct(at.Child("ports"), ports)...)
	for i, variable := range it.Env {
		at := at.Child("env").Index(i)
		problems = append(problems, named(at.Child("name"), variable.Name, validation.IsEnvVarName)...)
		if variable.ValueFrom != nil && variable.Value != "" {
			problems = append(problems, field.Invalid(at.Child("valueFrom"), "", "may not be specified when `value` is not empty"))
		}
	}
	var paths []string
	for i, mount := range it.VolumeMounts {
		at := at.Child("volumeMounts").Index(i)
		paths = append(paths, mount.MountPath)
		if mount.MountPath == "" {
			problems = append(problems, field.Required(at.Child("mountPath"), ""))
		}
		if !slices.Contains(volumes, mount.Name) {
			problems = append(problems, field.NotFound(at.Child("name"), mount.Name))
		}
	}
	problems = append(problems, distinct(at.Child("volumeMounts"), paths)...)
	for name, asked := range it.Resources.Requests {
		if most, has := it.Resources.Limits[name]; has && asked.Cmp(most) > 0 {
			problems = append(problems, field.Invalid(at.Child("resources", "requests"), asked.String(), "must be less than or equal to "+string(name)+" limit of "+most.String()))
		}
	}
	for name, probe := range map[string]*corev1.Probe{"livenessProbe": it.LivenessProbe, "readinessProbe": it.ReadinessProbe, "startupProbe": it.StartupProbe} {
		if probe != nil && initial && !stays {
			problems = append(problems, field.Forbidden(at.Child(name), "may not be set for init containers without restartPolicy=Always"))
		}
		problems = append(problems, checkProbe(probe, name, at.Child(name))...)
	}
	if it.Lifecycle != nil && initial && !stays {
		problems = append(problems, field.Forbidden(at.Child("lifecycle"), "may not be set for init containers without restartPolicy=Always"))
	}
	if context := it.SecurityContext; context != nil && context.RunAsUser != nil && *context.RunAsUser < 0 {
		problems = append(problems, field.Invalid(at.Child("securityContext", "runAsUser"), *context.RunAsUser, "must be between 0 and 2147483647, inclusive"))
	}
	return problems
}

func checkProbe(it *corev1.Probe, name string, at *field.Path) (problems field.ErrorList) {
	if it == nil {
		return nil
	}
	switch kinds := given(it.ProbeHandler); {
	case kinds == 0:
		problems = append(problems, field.Required(at, "must specify a handler type"))
	case kinds > 1:
		problems = append(problems, field.Forbidden(at, "may not specify more than 1 handler type"))
	}
	if it.HTTPGet != nil {
		problems = append(problems, portRef(at.Child("httpGet", "port"), it.HTTPGet.Port)...)
	}
	if it.TCPSocket != nil {
		problems = append(problems, portRef(at.Child("tcpSocket", "port"), it.TCPSocket.Port)...)
	}
	if it.GRPC != nil {
		problems = append(problems, numbered(at.Child("grpc", "port"), it.GRPC.Port)...)
	}
	if name != "readinessProbe" && it.SuccessThreshold != 1 {
		problems = append(problems, field.Invalid(at.Child("successThreshold"), it.SuccessThreshold, "must be 1"))
	}
	for child, value := range map[string]int32{"initialDelaySeconds": it.InitialDelaySeconds, "timeoutSeconds": it.TimeoutSeconds,
		"periodSeconds": it.PeriodSeconds, "failureThreshold": it.FailureThreshold} {
		problems = append(problems, apivalidation.ValidateNonnegativeField(int64(value), at.Child(child))...)
	}
	return problems
}

// How many of a union's members are given.
func given(union any) (members int) {
	for it, i := reflect.ValueOf(union), 0; i < it.NumField(); i++ {
		if !it.Field(i).IsNil() {
			members++
		}
	}
	return members
}

func portRef(at *field.Path, port intstr.IntOrString) (problems field.ErrorList) {
	if port.Type == intstr.String {
		return named(at, port.StrVal, validation.IsValidPortName)
	}
	return numbered(at, port.IntVal)
}

func qualityOfService(it *corev1.PodSpec) corev1.PodQOSClass {
	class := corev1.PodQOSGuaranteed
	any := false
	for _, container := range slices.Concat(it.InitContainers, it.Containers) {
		any = any || len(container.Resources.Requests)+len(container.Resources.Limits) > 0
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			most, limited := container.Resources.Limits[name]
			if asked := container.Resources.Requests[name]; !limited || asked.Cmp(most) != 0 {
				class = corev1.PodQOSBurstable
			}
		}
	}
	if !any {
		return corev1.PodQOSBestEffort
	}
	return class
}
