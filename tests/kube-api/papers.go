package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Longer than any test runs.
const paperHours = 24 * 30

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
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "kube-api test CA"}, NotBefore: now.Add(-time.Minute),
		NotAfter: now.Add(paperHours * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	caBytes, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano() + 1), Subject: pkix.Name{CommonName: "kube-api"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		// The first address of the Services' range is the server's own Service.
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.ParseIP(address), net.ParseIP(ownServiceAddress)},
	}
	leafBytes, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if it.tokenKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	it.adminToken = hex.EncodeToString(secret)
	it.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caBytes})
	for file, content := range map[string][]byte{
		it.caFile:    it.ca,
		it.certFile:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafBytes}),
		it.keyFile:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes}),
		it.tokenFile: []byte(it.adminToken),
	} {
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
