package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/kubernetes"
)

const (
	accountPlugin = "ServiceAccount"
	tokenPath     = "/var/run/secrets/kubernetes.io/serviceaccount"
	// A pod may be created in the moment after its namespace, before the default account is there.
	accountWait = 2 * time.Second
)

// Gives each new pod its service account and the mount with the account's token, before any webhook sees the pod.
type accountAdmission struct {
	*admission.Handler
	client kubernetes.Interface
}

func newAccountAdmission(client kubernetes.Interface) admission.Factory {
	return func(io.Reader) (admission.Interface, error) {
		return &accountAdmission{admission.NewHandler(admission.Create), client}, nil
	}
}

func (a *accountAdmission) Admit(ctx context.Context, about admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, is := about.GetObject().(*corev1.Pod)
	if !is || about.GetSubresource() != "" {
		return nil
	}
	if pod.Annotations[corev1.MirrorPodAnnotationKey] != "" {
		return nil
	}
	orBlank(&pod.Spec.ServiceAccountName, "default")
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	var account *corev1.ServiceAccount
	err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, accountWait, true, func(ctx context.Context) (bool, error) {
		var err error
		account, err = a.client.CoreV1().ServiceAccounts(about.GetNamespace()).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) && pod.Spec.ServiceAccountName == "default" {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return admission.NewForbidden(about, fmt.Errorf("error looking up service account %s/%s: %w", about.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = account.ImagePullSecrets
	}
	wanted := account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken
	if pod.Spec.AutomountServiceAccountToken != nil {
		wanted = *pod.Spec.AutomountServiceAccountToken
	}
	if wanted {
		mountToken(&pod.Spec)
	}
	return nil
}

func mountToken(pod *corev1.PodSpec) {
	name := "kube-api-access-" + rand.String(5)
	mounted := false
	for _, containers := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range containers {
			it := &containers[i]
			if slices.ContainsFunc(it.VolumeMounts, func(mount corev1.VolumeMount) bool { return mount.MountPath == tokenPath }) {
				continue
			}
			it.VolumeMounts = append(it.VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenPath})
			mounted = true
		}
	}
	if !mounted {
		return
	}
	volume := corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: new(int64(3607)), Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: rootConfigMap}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
		}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}},
		}}},
	}}}}
	defaultVolume(&volume.VolumeSource)
	pod.Volumes = append(pod.Volumes, volume)
}
