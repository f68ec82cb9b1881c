package main

import (
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/kubernetes"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const securityPlugin = "PodSecurity"

// Refuses pods that break the level in their namespace's label `pod-security.kubernetes.io/enforce`. The checks are Kubernetes' own; its
// warnings and audit notes are not given.
type securityAdmission struct {
	*admission.Handler
	client kubernetes.Interface
	judge  policy.Evaluator
}

func newSecurityAdmission(client kubernetes.Interface) admission.Factory {
	return func(io.Reader) (admission.Interface, error) {
		judge, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		return &securityAdmission{admission.NewHandler(admission.Create, admission.Update), client, judge}, err
	}
}

func (s *securityAdmission) Validate(ctx context.Context, about admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, is := about.GetObject().(*corev1.Pod)
	if !is || about.GetSubresource() != "" {
		return nil
	}
	namespace, err := s.client.CoreV1().Namespaces().Get(ctx, about.GetNamespace(), metav1.GetOptions{})
	if err != nil {
		return admission.NewForbidden(about, err)
	}
	anything := podsecurity.LevelVersion{Level: podsecurity.LevelPrivileged, Version: podsecurity.LatestVersion()}
	level, problems := podsecurity.PolicyToEvaluate(namespace.Labels, podsecurity.Policy{Enforce: anything, Audit: anything, Warn: anything})
	if len(problems) > 0 {
		return admission.NewForbidden(about, problems.ToAggregate())
	}
	if found := policy.AggregateCheckResults(s.judge.EvaluatePod(level.Enforce, &pod.ObjectMeta, &pod.Spec)); !found.Allowed {
		return admission.NewForbidden(about, fmt.Errorf("violates PodSecurity %s: %s", quoted(level.Enforce.String()), found.ForbiddenDetail()))
	}
	return nil
}
