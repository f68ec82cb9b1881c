package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextensionsoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	webhookinit "k8s.io/apiserver/pkg/admission/plugin/webhook/initializer"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	basecompatibility "k8s.io/component-base/compatibility"

	generated "meshwright.dev/tests/kube-api/openapi"
)

type server struct {
	generic *genericapiserver.GenericAPIServer
	// Closed when requests are answered and the namespaces of every cluster are there.
	ready chan struct{}
}

func (s *server) run(ctx context.Context) error {
	return s.generic.PrepareRun().RunWithContext(ctx)
}

// Finds the address that a webhook's Service stands for. There is no network of Services here, so a ready endpoint is taken instead.
type endpoints struct {
	services informers.SharedInformerFactory
	slices   proxy.EndpointSliceGetter
}

func (e endpoints) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	return proxy.ResolveEndpoint(e.services.Core().V1().Services().Lister(), e.slices, namespace, name, port)
}

// One generic server: the one that serves custom resources, with the built-in groups installed on it.
func newServer(settings settings, listener net.Listener, papers *papers, etcd string) (*server, error) {
	config := genericapiserver.NewRecommendedConfig(codecs)
	serving := genericoptions.NewSecureServingOptions().WithLoopback()
	serving.Listener = listener
	serving.BindAddress = net.ParseIP(settings.address)
	serving.ServerCert.CertKey = genericoptions.CertKey{CertFile: papers.certFile, KeyFile: papers.keyFile}
	if err := serving.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig); err != nil {
		return nil, err
	}
	// The loopback client is the garbage collector's and the informers': its pace is not the user's.
	config.LoopbackClientConfig.QPS, config.LoopbackClientConfig.Burst = -1, -1
	version := compatibility.DefaultBuildEffectiveVersion()
	if settings.version != "" {
		version = basecompatibility.NewEffectiveVersionFromString(settings.version, "", "")
	}
	config.EffectiveVersion = version
	config.FeatureGate = utilfeature.DefaultFeatureGate
	config.MergedResourceConfig = apiextensions.DefaultAPIResourceConfigSource()
	config.LongRunningFunc = genericfilters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "log", "portforward", "proxy"))
	definitions := openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generated.GetOpenAPIDefinitions)
	namer := openapinamer.NewDefinitionNamer(apiextensions.Scheme, scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)

	client, err := kubernetes.NewForConfig(config.LoopbackClientConfig)
	if err != nil {
		return nil, err
	}
	objects, err := dynamic.NewForConfig(config.LoopbackClientConfig)
	if err != nil {
		return nil, err
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	config.SharedInformerFactory, config.ClientConfig = shared, config.LoopbackClientConfig
	tokens := &tokens{key: papers.tokenKey, client: client}
	config.Authentication.APIAudiences = apiAudiences
	config.Authentication.Authenticator = authenticate(papers.adminToken, tokens)
	config.Authorization.Authorizer = authorize(settings.rbac, shared)

	slices, err := proxy.NewEndpointSliceIndexerGetter(shared.Discovery().V1().EndpointSlices())
	if err != nil {
		return nil, err
	}
	resolver := endpoints{shared, slices}
	shared.Core().V1().Services().Informer()
	wrapper := webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, config.LoopbackClientConfig, noopoteltrace.NewTracerProvider())
	admission := genericoptions.NewAdmissionOptions()
	admission.Plugins.Register(accountPlugin, newAccountAdmission(client))
	admission.Plugins.Register(securityPlugin, newSecurityAdmission(client))
	admission.RecommendedPluginOrder = append([]string{accountPlugin, securityPlugin}, admission.RecommendedPluginOrder...)
	if err := admission.ApplyTo(&config.Config, shared, client, objects, config.FeatureGate, config.EffectiveVersion,
		webhookinit.NewPluginInitializer(wrapper, resolver)); err != nil {
		return nil, err
	}

	options := newStoreOptions(etcd)
	config.RESTOptionsGetter = options
	etcdOptions := genericoptions.NewEtcdOptions(&options.config)
	custom := apiextensions.Config{GenericConfig: config, ExtraConfig: apiextensions.ExtraConfig{
		CRDRESTOptionsGetter: apiextensionsoptions.NewCRDRESTOptionsGetter(*etcdOptions, nil, nil),
		MasterCount:          1, ServiceResolver: resolver, AuthResolverWrapper: wrapper,
	}}
	completed := custom.Complete()
	// The library takes itself for one of several servers behind an aggregator, and leaves /apis to that.
	completed.GenericConfig.EnableDiscovery = true
	made, err := completed.New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, err
	}
	it := &server{made.GenericAPIServer, make(chan struct{})}
	if err := install(it.generic, options, tokens); err != nil {
		return nil, err
	}
	controllers := &controllers{client: client, config: config.LoopbackClientConfig, shared: shared, papers: papers, server: it}
	return it, it.generic.AddPostStartHook("kube-api-controllers", func(hook genericapiserver.PostStartHookContext) error {
		go controllers.run(hook.Context)
		return nil
	})
}

// Installs every row of the table, and the endpoints that store nothing.
func install(generic *genericapiserver.GenericAPIServer, options storeOptions, tokens *tokens) error {
	stored := map[string]*endpoint{}
	groups := map[schema.GroupVersion]map[string]rest.Storage{}
	for _, row := range kinds {
		at, ofStatus, err := openKind(row, options)
		if err != nil {
			return fmt.Errorf("cannot open the store of %s: %w", row.resource, err)
		}
		if groups[row.group] == nil {
			groups[row.group] = map[string]rest.Storage{}
		}
		groups[row.group][row.resource] = at
		if ofStatus != nil {
			groups[row.group][row.resource+"/status"] = ofStatus
		}
		stored[row.qualified().String()] = at
	}
	addNamespaceEndpoints(groups[core], stored["namespaces"])
	addServiceAddresses(stored["services"])
	addPodEndpoints(groups[core], stored["pods"], stored["nodes"])
	addScaleEndpoints(groups[apps], stored)
	groups[core]["serviceaccounts/token"] = tokens.request(stored["serviceaccounts"], stored["pods"])
	addReviews(groups, tokens, generic)

	versions := make([]schema.GroupVersion, 0, len(groups))
	for version := range groups {
		versions = append(versions, version)
	}
	slices.SortFunc(versions, func(a, b schema.GroupVersion) int { return strings.Compare(a.String(), b.String()) })
	for _, version := range versions {
		info := genericapiserver.NewDefaultAPIGroupInfo(version.Group, scheme, parameterCodec, codecs)
		info.PrioritizedVersions = []schema.GroupVersion{version}
		info.VersionedResourcesStorageMap[version.Version] = groups[version]
		var err error
		if version == core {
			err = generic.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, &info)
		} else {
			err = generic.InstallAPIGroups(&info)
		}
		if err != nil {
			return fmt.Errorf("cannot install %s: %w", version, err)
		}
	}
	return nil
}
