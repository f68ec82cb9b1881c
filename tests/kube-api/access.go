package main

import (
	"context"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/union"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
)

// Who may do what: the administrators everything; others what the stored roles give them, or everything where roles are not enforced.
func authorize(enforced bool, shared informers.SharedInformerFactory) authorizer.Authorizer {
	if !enforced {
		return authorizerfactory.NewAlwaysAllowAuthorizer()
	}
	from := shared.Rbac().V1()
	// Asking for the informers now has them started with the others.
	return union.New(authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup), &roles{
		from.Roles().Lister(), from.RoleBindings().Lister(), from.ClusterRoles().Lister(), from.ClusterRoleBindings().Lister(),
	})
}

// Judges by Roles, ClusterRoles and their bindings. Aggregated ClusterRoles and the check against giving away more than one has are not here.
type roles struct {
	roles           rbaclisters.RoleLister
	bindings        rbaclisters.RoleBindingLister
	clusterRoles    rbaclisters.ClusterRoleLister
	clusterBindings rbaclisters.ClusterRoleBindingLister
}

func (r *roles) Authorize(_ context.Context, asked authorizer.Attributes) (authorizer.Decision, string, error) {
	clusterWide, err := r.clusterBindings.List(labels.Everything())
	if err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	for _, binding := range clusterWide {
		if appliesTo(binding.Subjects, "", asked.GetUser()) && allow(r.rules(binding.RoleRef, ""), asked) {
			return authorizer.DecisionAllow, "ClusterRoleBinding " + quoted(binding.Name), nil
		}
	}
	if namespace := asked.GetNamespace(); namespace != "" {
		local, err := r.bindings.RoleBindings(namespace).List(labels.Everything())
		if err != nil {
			return authorizer.DecisionNoOpinion, "", err
		}
		for _, binding := range local {
			if appliesTo(binding.Subjects, namespace, asked.GetUser()) && allow(r.rules(binding.RoleRef, namespace), asked) {
				return authorizer.DecisionAllow, "RoleBinding " + quoted(namespace+"/"+binding.Name), nil
			}
		}
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// A role that is bound and does not exist gives nothing.
func (r *roles) rules(role rbacv1.RoleRef, namespace string) []rbacv1.PolicyRule {
	if role.Kind == "Role" {
		if found, err := r.roles.Roles(namespace).Get(role.Name); err == nil {
			return found.Rules
		}
	} else if found, err := r.clusterRoles.Get(role.Name); err == nil {
		return found.Rules
	}
	return nil
}

func appliesTo(subjects []rbacv1.Subject, namespace string, who user.Info) bool {
	return slices.ContainsFunc(subjects, func(subject rbacv1.Subject) bool {
		switch subject.Kind {
		case rbacv1.UserKind:
			return subject.Name == who.GetName()
		case rbacv1.GroupKind:
			return slices.Contains(who.GetGroups(), subject.Name)
		case rbacv1.ServiceAccountKind:
			home := subject.Namespace
			if home == "" {
				home = namespace
			}
			return serviceaccount.MatchesUsername(home, subject.Name, who.GetName())
		}
		return false
	})
}

func allow(rules []rbacv1.PolicyRule, asked authorizer.Attributes) bool {
	return slices.ContainsFunc(rules, func(rule rbacv1.PolicyRule) bool {
		if !has(rule.Verbs, asked.GetVerb()) {
			return false
		}
		if !asked.IsResourceRequest() {
			return slices.ContainsFunc(rule.NonResourceURLs, func(path string) bool {
				prefix, open := strings.CutSuffix(path, "*")
				return path == asked.GetPath() || open && strings.HasPrefix(asked.GetPath(), prefix)
			})
		}
		resource := asked.GetResource()
		if asked.GetSubresource() != "" {
			resource += "/" + asked.GetSubresource()
		}
		return has(rule.APIGroups, asked.GetAPIGroup()) &&
			(has(rule.Resources, resource) || asked.GetSubresource() != "" && slices.Contains(rule.Resources, "*/"+asked.GetSubresource())) &&
			(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, asked.GetName()))
	})
}

func has(list []string, name string) bool {
	return slices.Contains(list, name) || slices.Contains(list, "*")
}

func addReviews(groups map[schema.GroupVersion]map[string]rest.Storage, tokens *tokens, generic *genericapiserver.GenericAPIServer) {
	judge := generic.Authorizer
	groups[authenticationv1.SchemeGroupVersion] = map[string]rest.Storage{
		"tokenreviews":       answering(false, tokens.review),
		"selfsubjectreviews": answering(false, reviewSelf),
	}
	groups[authorizationv1.SchemeGroupVersion] = map[string]rest.Storage{
		"selfsubjectaccessreviews": answering(false, func(ctx context.Context, review *authorizationv1.SelfSubjectAccessReview) error {
			who, _ := genericapirequest.UserFrom(ctx)
			review.Status = access(ctx, judge, who, review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
			return nil
		}),
		"subjectaccessreviews": answering(false, func(ctx context.Context, review *authorizationv1.SubjectAccessReview) error {
			review.Status = access(ctx, judge, subject(&review.Spec), review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
			return nil
		}),
		"localsubjectaccessreviews": answering(true, func(ctx context.Context, review *authorizationv1.LocalSubjectAccessReview) error {
			review.Status = access(ctx, judge, subject(&review.Spec), review.Spec.ResourceAttributes, nil)
			return nil
		}),
	}
}

func subject(spec *authorizationv1.SubjectAccessReviewSpec) user.Info {
	extra := map[string][]string{}
	for key, values := range spec.Extra {
		extra[key] = values
	}
	return &user.DefaultInfo{Name: spec.User, UID: spec.UID, Groups: spec.Groups, Extra: extra}
}

func access(ctx context.Context, judge authorizer.Authorizer, who user.Info, resource *authorizationv1.ResourceAttributes,
	path *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	asked := authorizer.AttributesRecord{User: who}
	switch {
	case resource != nil:
		asked.ResourceRequest = true
		asked.Verb, asked.Namespace, asked.Name = resource.Verb, resource.Namespace, resource.Name
		asked.APIGroup, asked.APIVersion = resource.Group, resource.Version
		asked.Resource, asked.Subresource = resource.Resource, resource.Subresource
	case path != nil:
		asked.Verb, asked.Path = path.Verb, path.Path
	}
	decision, reason, err := judge.Authorize(ctx, asked)
	status := authorizationv1.SubjectAccessReviewStatus{Allowed: decision == authorizer.DecisionAllow, Denied: decision == authorizer.DecisionDeny, Reason: reason}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}
