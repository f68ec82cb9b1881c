package main

import (
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

const (
	storePrefix = "/registry"
	// A test that writes more than this has lost its way.
	storeBytesMax = 4 << 30
	// How long a watch that lost its connection may come back without a re-list.
	watchWindow = 5 * time.Minute
)

// etcd, in this process, on a loopback port of its own. What it holds ends with the process.
type store struct {
	*embed.Etcd
	endpoint string
}

func startStore(dir string) (*store, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	config := embed.NewConfig()
	config.Dir = dir
	config.UnsafeNoFsync = true
	config.EnableGRPCGateway = false
	config.QuotaBackendBytes = storeBytesMax
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	anywhere := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{anywhere}, []url.URL{anywhere}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{anywhere}, []url.URL{anywhere}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("cannot start the embedded etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return &store{etcd, "http://" + etcd.Clients[0].Addr().String()}, nil
	case err := <-etcd.Err():
		return nil, fmt.Errorf("the embedded etcd ended: %w", err)
	case <-time.After(startSecondsMax * time.Second):
		etcd.Close()
		return nil, fmt.Errorf("the embedded etcd in %s is not ready in time", dir)
	}
}

// Where and how each kind is stored: as protobuf, behind a watch cache, as Kubernetes does.
type storeOptions struct{ config storagebackend.Config }

func newStoreOptions(endpoint string) storeOptions {
	config := storagebackend.NewDefaultConfig(storePrefix, nil)
	config.Transport.ServerList = []string{endpoint}
	config.EventsHistoryWindow = watchWindow
	return storeOptions{*config}
}

func (o storeOptions) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	var serializer runtime.StorageSerializer = codecs
	types := scheme
	if resource.Group == "apiextensions.k8s.io" {
		serializer, types = apiextensions.Codecs, apiextensions.Scheme
	}
	version := schema.GroupVersion{Group: resource.Group, Version: "v1"}
	for _, row := range kinds {
		if row.qualified() == resource {
			version = row.group
		}
	}
	if !types.IsVersionRegistered(version) {
		return generic.RESTOptions{}, fmt.Errorf("%s has no version %s", resource, version.Version)
	}
	codec, versioner, err := serverstorage.NewStorageCodec(serverstorage.StorageCodecConfig{
		StorageMediaType: runtime.ContentTypeProtobuf, StorageSerializer: serializer, StorageVersion: version,
		MemoryVersion: schema.GroupVersion{Group: resource.Group, Version: runtime.APIVersionInternal}, Config: o.config,
	})
	if err != nil {
		return generic.RESTOptions{}, err
	}
	config := o.config.ForResource(resource)
	config.Codec, config.EncodeVersioner = codec, versioner
	return generic.RESTOptions{
		StorageConfig: config, Decorator: genericregistry.StorageWithCacher(), EnableGarbageCollection: true, DeleteCollectionWorkers: 4,
		ResourcePrefix: resource.Group + "/" + resource.Resource,
	}, nil
}
