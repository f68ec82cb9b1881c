// A stock go-spiffe client: fetches the identity of the workload it runs in, waits for the next one, speaks mutual TLS with it, and has a
// token made and judged. Prints one JSON line per step; ends with status 1 at the first thing that is not as it should be.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	x509, err := workloadapi.NewX509Source(ctx)
	must("NewX509Source", err)
	first, err := x509.GetX509SVID()
	must("GetX509SVID", err)
	tell("x509", map[string]any{"id": first.ID.String(), "serial": fmt.Sprintf("%x", first.Certificates[0].SerialNumber), "hint": first.Hint})
	speak(x509, first.ID)

	tokens, err := workloadapi.NewJWTSource(ctx)
	must("NewJWTSource", err)
	svid, err := tokens.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "store", ExtraAudiences: []string{"other"}})
	must("FetchJWTSVID", err)
	bundle, err := tokens.GetJWTBundleForTrustDomain(first.ID.TrustDomain())
	must("GetJWTBundleForTrustDomain", err)
	judge(svid.Marshal(), bundle)
	_, err = workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "store")
	must("ValidateJWTSVID", err)
	_, err = workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "stranger")
	mustNot("ValidateJWTSVID for a stranger", err)
	tell("jwt", map[string]any{"id": svid.ID.String(), "audience": svid.Audience, "keys": len(bundle.JWTAuthorities())})

	for {
		must("WaitUntilUpdated", x509.WaitUntilUpdated(ctx))
		next, err := x509.GetX509SVID()
		must("GetX509SVID", err)
		if next.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) != 0 {
			tell("rotated", map[string]any{"id": next.ID.String(), "serial": fmt.Sprintf("%x", next.Certificates[0].SerialNumber)})
			speak(x509, next.ID)
			return
		}
	}
}

// Mutual TLS with itself; then as somebody else, which must fail.
func speak(source *workloadapi.X509Source, id spiffeid.ID) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must("Listen", err)
	defer listener.Close()
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			connection := tls.Server(raw, tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id)))
			io.Copy(connection, connection)
			connection.Close()
		}
	}()
	call := func(wanted spiffeid.ID) error {
		config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(wanted))
		connection, err := tls.Dial("tcp", listener.Addr().String(), config)
		if err != nil {
			return err
		}
		defer connection.Close()
		if _, err = connection.Write([]byte("ping")); err != nil {
			return err
		}
		_, err = io.ReadFull(connection, make([]byte, 4))
		return err
	}
	must("mutual TLS", call(id))
	mustNot("mutual TLS with another", call(spiffeid.RequireFromPath(id.TrustDomain(), "/ns/shop/sa/somebody-else")))
}

// Judged by the library itself, with the published keys.
func judge(token string, bundle *jwtbundle.Bundle) {
	_, err := jwtsvid.ParseAndValidate(token, bundle, []string{"store"})
	must("ParseAndValidate", err)
	_, err = jwtsvid.ParseAndValidate(token, bundle, []string{"stranger"})
	mustNot("a token for others", err)
	_, err = jwtsvid.ParseAndValidate(token[:len(token)-4]+"AAAA", bundle, []string{"store"})
	mustNot("a forged token", err)
}

func tell(step string, facts map[string]any) {
	facts["step"] = step
	must("print", json.NewEncoder(os.Stdout).Encode(facts))
}

func must(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func mustNot(what string, err error) {
	if err == nil {
		fmt.Fprintf(os.Stderr, "%s went well, and should not\n", what)
		os.Exit(1)
	}
}
