"""A stock SPIFFE client (PyPI `spiffe`): fetches the identity of the workload it runs in, has a token made, judged by PyJWT and by the API,
and waits for the next certificate. Prints one JSON line per step; fails at the first thing that is not as it should be."""

import json
import sys
import threading

import jwt
from spiffe import JwtSource, TrustDomain, WorkloadApiClient, X509Source


def tell(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)


def refused(what, call):
    try:
        call()
    except Exception as error:  # whichever of the library's
        return type(error).__name__
    sys.exit(f"{what} went well, and should not")


def tokens(identity):
    with JwtSource(timeout_in_seconds=30) as source, WorkloadApiClient() as api:
        svid = source.fetch_svid(audience={"store", "other"})
        bundle = source.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
        kid = jwt.get_unverified_header(svid.token)["kid"]
        key = bundle.get_jwt_authority(kid)
        judge = lambda token, audience, key=key: jwt.decode(token, key, algorithms=["ES256"], audience=audience)
        claims = judge(svid.token, "store")
        assert claims["sub"] == identity, claims
        assert claims["exp"] - claims["iat"] <= 300, claims
        assert api.validate_jwt_svid(svid.token, "store").spiffe_id == svid.spiffe_id
        reasons = [
            refused("another audience", lambda: judge(svid.token, "stranger")),
            refused("a forged signature", lambda: judge(svid.token[:-4] + "AAAA", "store")),
            refused("another audience by the API", lambda: api.validate_jwt_svid(svid.token, "stranger")),
            refused("a forged one by the API", lambda: api.validate_jwt_svid(svid.token[:-4] + "AAAA", "store")),
        ]
        tell("jwt", id=str(svid.spiffe_id), audience=sorted(svid.audience), refused=reasons)


def main():
    updated = threading.Event()
    with X509Source(timeout_in_seconds=30) as source:
        source.subscribe_for_updates(updated.set)
        svid = lambda: source.get_x509_context().default_svid
        first = svid()
        bundle = source.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
        tell("x509", id=str(first.spiffe_id), serial=f"{first.leaf.serial_number:x}", roots=len(bundle.x509_authorities))
        tokens(str(first.spiffe_id))
        while svid().leaf.serial_number == first.leaf.serial_number:
            if not updated.wait(timeout=90):
                sys.exit("no next certificate within 90 s")
            updated.clear()
        tell("rotated", id=str(svid().spiffe_id), serial=f"{svid().leaf.serial_number:x}")


main()
