package main

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
)

const (
	issuer = "https://kubernetes.default.svc.cluster.local"
	// The bounds that Kubernetes has for what a token may ask, and what it gets unasked.
	tokenSecondsMin, tokenSecondsMax, tokenSecondsDefault = 600, 1 << 32, 3600
)

var apiAudiences = authenticator.Audiences{issuer, "https://kubernetes.default.svc"}

// Signs and judges the tokens of service accounts: JWTs with the claims that Kubernetes puts into bound tokens.
type tokens struct {
	key    *ecdsa.PrivateKey
	client kubernetes.Interface
	// Judges every kind of token; set when the server's authentication is made.
	all authenticator.Token
}

type reference struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
}

type claims struct {
	jwt.RegisteredClaims
	Kubernetes bound `json:"kubernetes.io"`
}

type bound struct {
	Namespace string     `json:"namespace"`
	Account   reference  `json:"serviceaccount"`
	Pod       *reference `json:"pod,omitempty"`
	Node      *reference `json:"node,omitempty"`
}

// The administrator's token and those of service accounts; without one a request is anonymous, with a wrong one it is refused.
func authenticate(adminToken string, tokens *tokens) authenticator.Request {
	admin := tokenfile.New(map[string]*user.DefaultInfo{
		adminToken: {Name: "kubernetes-admin", UID: "admin", Groups: []string{user.SystemPrivilegedGroup}},
	})
	tokens.all = tokenunion.NewFailOnError(authenticator.WrapAudienceAgnosticToken(apiAudiences, admin), tokens)
	known := group.NewAuthenticatedGroupAdder(bearertoken.New(tokens.all))
	return union.NewFailOnError(known, anonymous.NewAuthenticator(nil))
}

// AuthenticateToken says whose token it is. What it is bound to must still be there, with the same UID.
func (t *tokens) AuthenticateToken(ctx context.Context, text string) (*authenticator.Response, bool, error) {
	var it claims
	if strings.Count(text, ".") != 2 {
		return nil, false, nil
	}
	if _, err := jwt.ParseWithClaims(text, &it, func(*jwt.Token) (any, error) { return &t.key.PublicKey, nil },
		jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(issuer), jwt.WithExpirationRequired()); err != nil {
		return nil, false, err
	}
	asked, has := authenticator.AudiencesFrom(ctx)
	if !has {
		asked = apiAudiences
	}
	audiences := authenticator.Audiences(it.Audience).Intersect(asked)
	if len(audiences) == 0 {
		return nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", it.Audience, asked)
	}
	about := it.Kubernetes
	account, err := t.client.CoreV1().ServiceAccounts(about.Namespace).Get(ctx, about.Account.Name, metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	if account.UID != about.Account.UID {
		return nil, false, errors.New("service account UID does not match the token's claim")
	}
	info := &serviceaccount.ServiceAccountInfo{
		Namespace: about.Namespace, Name: about.Account.Name, UID: string(about.Account.UID), CredentialID: "JTI=" + it.ID,
	}
	if about.Pod != nil {
		pod, err := t.client.CoreV1().Pods(about.Namespace).Get(ctx, about.Pod.Name, metav1.GetOptions{})
		if err != nil {
			return nil, false, err
		}
		if pod.UID != about.Pod.UID {
			return nil, false, errors.New("pod UID does not match the token's claim")
		}
		info.PodName, info.PodUID = about.Pod.Name, string(about.Pod.UID)
	}
	if about.Node != nil {
		info.NodeName, info.NodeUID = about.Node.Name, string(about.Node.UID)
	}
	return &authenticator.Response{Audiences: audiences, User: info.UserInfo()}, true, nil
}

// serviceaccounts/token: a fresh token for the account of that name.
func (t *tokens) request(accounts, pods *endpoint) *order {
	return ordering(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), func(ctx context.Context, name string, request *authenticationv1.TokenRequest) (runtime.Object, error) {
		found, err := accounts.Get(ctx, name, &metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return request, t.grant(ctx, found.(*corev1.ServiceAccount), pods, request)
	})
}

func (t *tokens) grant(ctx context.Context, account *corev1.ServiceAccount, pods *endpoint, request *authenticationv1.TokenRequest) error {
	seconds := int64(tokenSecondsDefault)
	if request.Spec.ExpirationSeconds != nil {
		seconds = *request.Spec.ExpirationSeconds
	}
	if seconds < tokenSecondsMin || seconds > tokenSecondsMax {
		return apierrors.NewBadRequest("spec.expirationSeconds: may not specify a duration less than 10 minutes or longer than 2^32 seconds")
	}
	if len(request.Spec.Audiences) == 0 {
		request.Spec.Audiences = slices.Clone(apiAudiences)
	}
	now := time.Now()
	claims := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuer, Subject: serviceaccount.MakeUsername(account.Namespace, account.Name), Audience: jwt.ClaimStrings(request.Spec.Audiences),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ID: uuid.NewString(),
			ExpiresAt: jwt.NewNumericDate(now.Add(time.Duration(seconds) * time.Second)),
		},
		Kubernetes: bound{Namespace: account.Namespace, Account: reference{account.Name, account.UID}},
	}
	if to := request.Spec.BoundObjectRef; to != nil {
		if to.Kind != "Pod" {
			return apierrors.NewBadRequest("spec.boundObjectRef.kind: tokens are bound to Pods here, to nothing else")
		}
		found, err := pods.Get(ctx, to.Name, &metav1.GetOptions{})
		if err != nil {
			return err
		}
		pod := found.(*corev1.Pod)
		if to.UID != "" && to.UID != pod.UID {
			return apierrors.NewConflict(pods.kind.qualified(), to.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record", to.UID))
		}
		if pod.Spec.ServiceAccountName != account.Name {
			return apierrors.NewBadRequest("cannot bind token for serviceaccount " + quoted(account.Name) + " to pod running with different serviceaccount name.")
		}
		claims.Kubernetes.Pod = &reference{pod.Name, pod.UID}
		if pod.Spec.NodeName != "" {
			claims.Kubernetes.Node = &reference{Name: pod.Spec.NodeName}
		}
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(t.key)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	request.Name, request.Namespace, request.CreationTimestamp = account.Name, account.Namespace, metav1.NewTime(now)
	request.Spec.ExpirationSeconds = &seconds
	request.Status = authenticationv1.TokenRequestStatus{Token: text, ExpirationTimestamp: metav1.NewTime(claims.ExpiresAt.Time)}
	return nil
}

// A tokenreview: whose is it?
func (t *tokens) review(ctx context.Context, review *authenticationv1.TokenReview) error {
	if review.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	audiences := authenticator.Audiences(review.Spec.Audiences)
	if len(audiences) == 0 {
		audiences = apiAudiences
	}
	found, known, err := t.all.AuthenticateToken(authenticator.WithAudiences(ctx, audiences), review.Spec.Token)
	review.Status = authenticationv1.TokenReviewStatus{Authenticated: known}
	switch {
	case err != nil:
		review.Status.Error = err.Error()
	case known:
		review.Status.User = describe(found.User)
		if len(review.Spec.Audiences) > 0 {
			review.Status.Audiences = found.Audiences
		}
	}
	return nil
}

// A selfsubjectreview: who am I?
func reviewSelf(ctx context.Context, review *authenticationv1.SelfSubjectReview) error {
	who, known := genericapirequest.UserFrom(ctx)
	if !known {
		return apierrors.NewBadRequest("no user found for request")
	}
	review.Status.UserInfo = describe(who)
	return nil
}

func describe(who user.Info) authenticationv1.UserInfo {
	extra := map[string]authenticationv1.ExtraValue{}
	for key, values := range who.GetExtra() {
		extra[key] = values
	}
	return authenticationv1.UserInfo{Username: who.GetName(), UID: who.GetUID(), Groups: who.GetGroups(), Extra: extra}
}
