//go:build modules

package main

// Read as files, not compiled: the custom resource definitions of Gateway API come with this module.
import _ "sigs.k8s.io/gateway-api/apis/v1"
