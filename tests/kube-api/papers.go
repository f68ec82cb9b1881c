package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
)

// What proves who is who: the server by its certificate, the administrator by a token, service accounts by tokens signed with a key.
type papers struct {
	server, kubeconfig, caFile, tokenFile, certFile, keyFile string
	ca                                                       []byte
	adminToken                                               string
	tokenKey                                                 *ecdsa.PrivateKey
}

// Makes all of them and writes those that clients need into the folder. The files are new at each start.
func issuePapers(dir, address, server string) (*papers, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	it := &papers{
		server: "https://" + server, kubeconfig: filepath.Join(dir, "kubeconfig"), caFile: filepath.Join(dir, "ca.crt"),
		tokenFile: filepath.Join(dir, "admin.token"), certFile: filepath.Join(dir, "server.crt"), keyFile: filepath.Join(dir, "server.key"),
	}
	// The first address of the Services' range is the server's own Service.
	certificate, key, err := certutil.GenerateSelfSignedCertKey(address, []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(ownServiceAddress)},
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"})
	if err != nil {
		return nil, err
	}
	// The library puts the authority after the certificate that it signed.
	_, it.ca, _ = bytes.Cut(certificate, []byte("-----END CERTIFICATE-----\n"))
	if it.tokenKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	it.adminToken = hex.EncodeToString(secret)
	for file, content := range map[string][]byte{it.caFile: it.ca, it.certFile: certificate, it.keyFile: key, it.tokenFile: []byte(it.adminToken)} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return nil, err
		}
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: it.server, CertificateAuthorityData: it.ca}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: it.adminToken}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin", Namespace: "default"}
	config.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*config, it.kubeconfig); err != nil {
		return nil, fmt.Errorf("cannot write kubeconfig: %w", err)
	}
	return it, nil
}
